"""Credentials of many shapes, and how each may be spelled where it is shown."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

from yarl import URL

__all__ = ["SHAPES", "spellings"]

SHAPES = {
    "plain": "zq-plain-4711-key",
    "four characters": "zq7w",
    "four kilobytes": "zqL" * 1365,
    "bearer": "Bearer zqB3arer.t0ken-abc",
    "basic": "Basic " + b64encode(b"zq-user:zq-pa55:word").decode(),
    "jwt": "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ6cSIsIm4iOjF9.zqSignature_-",
    "base64": "zq+a/b==",
    "hexadecimal": "5ec2e7" * 8,
    "digits": "9081726354" * 3,
    "unicode": "zq-schlüssel-ключ-鍵-🔑",
    "quotes": "zq\"double'single`back",
    "backslashes": "zq\\n\\u0041\\\\end",
    "percent-encoded": "zq%2Fkey%3D%25",
    "markup": "<zq&amp;key/>",
    "regular expression": "zq.*(key)+[x]{2}$^|?",
    "braces of a template": "{zq} {0!r} %(zq)s %s",
    "json": '{"zq-key": ["zq-value"]}',
    "tab": "zq-key\tzq-tab",
    "spaces": "zq several words  as one",
    "digest": 'Digest username="zq-name", response="zq-0a1b2c"',
    "signature": "AWS4-HMAC-SHA256 Credential=ZQAKIA/eu, Signature=zqfe5e",
    "url": "https://zq-user:zq-pass@zq.example/?zq=1",
}


def spellings(secret: str) -> Iterator[str]:
    """Return *secret* as it is, in a URL, in JSON, in Python's quotes, in base64, and with a wrong charset."""
    scheme, _, rest = secret.partition(" ")
    texts = [secret, *([rest] if scheme in {"Bearer", "Basic", "Digest"} else [])]
    if scheme == "Basic":
        texts += [b64decode(rest).decode(), "zq-pa55:word"]
    for text in texts:
        yield text
        yield from (quote(text), quote(text, ""), quote_plus(text), str(URL.build(path=f"/{text}"))[1:])
        yield from (json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], repr(text)[1:-1])
        yield repr(text.encode())[2:-1]
        yield text.encode().decode("latin-1")
        yield b64encode(f"someone:{text}".encode()).decode()
