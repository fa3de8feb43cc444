"""Show requests and responses without credentials."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, unquote_plus

from multidict import CIMultiDict
from yarl import URL

from lamella.error_body import ERROR_BYTES, json_in
from lamella.secret_names import PUBLIC_HEADERS, one_tells, telling_headers, tells, tells_of_answer

if TYPE_CHECKING:
    import aiohttp

REDACTED = "REDACTED"
"""Replaces a secret, by the OpenTelemetry conventions for ``url.full``."""

# Placeholder until all secrets are replaced, since a secret might be part of the final word.
_MARK = "\uf8ff"
_LONGEST_TEXT = 300
# Endless headers may be megabytes.
_MOST_READ = 64 * 1024
# Shorter values are not secrets and would match in many words.
_SHORTEST_SECRET = 4
# Parts of a credential are often words, such as a cookie's name.
_SHORTEST_PART = 8


def redact_url(url: URL, secrets: Iterable[str] = ()) -> str:
    """Return *url* without user, password and fragment, and with the values of sensitive query keys replaced."""
    return shown_url(url, secrets)[0]


def shown_url(url: URL, secrets: Iterable[str] = ()) -> tuple[str, URL]:
    """Return the result of :func:`redact_url` as text and as a URL."""
    origin, rest, shown = url_parts(url)
    hidden = hide(rest, secrets)
    text = origin + hidden
    return text, shown if hidden == rest and text == str(shown) else URL(text)


def url_parts(url: URL) -> tuple[str, str, URL]:
    """Return the origin of *url*, the rest, and both as a URL, before secrets are removed by :func:`hide`."""
    shown = url.with_fragment(None) if url.raw_fragment else url
    if url.raw_user is not None or url.raw_password is not None:
        shown = shown.with_user(None)
    if url.raw_query_string and (one_tells(tuple(url.query)) or "//" in url.query_string):
        # A value may be a URL with credentials of its own.
        query = [
            # A name that contains an equals sign is an escaped parameter.
            (name.partition("=")[0], REDACTED) if tells(name) else (name, _without_login(value))
            for name, value in url.query.items()
        ]
        shown = shown.with_query(query) if query != [*url.query.items()] else shown
    # Host and port stay: a match in them is a coincidence.
    origin = f"{shown.scheme}://{shown.raw_authority}" if shown.raw_authority else ""
    rest = str(shown).removeprefix(origin)
    if ";" in rest or "@" in rest or "%40" in rest or "%3" in rest:
        path, mark, more = rest.partition("?")
        path = _IN_PATH.sub(_hide_parameter, _USER_IN_PATH.sub(r"\1", path))
        rest = path + _IN_QUERY.sub(_hide_parameter, mark + more)
    return origin, rest, shown


# Parameters after a semicolon or an escaped question mark: of a segment of the path, such as ;jsessionid=, and of the
# query.
_IN_PATH = re.compile("(;|%3F)([^/]+)", re.IGNORECASE)
_IN_QUERY = re.compile("([?&])([^&]+)")
_USER_IN_PATH = re.compile("(//|%2F%2F)(?:(?!%2F)[^/])*(?:@|%40)", re.IGNORECASE)  # of a URL in the path


def redact_headers(headers: Mapping[str, str], secrets: Iterable[str] = ()) -> CIMultiDict[str]:
    """Return the *headers* of a request with only harmless values and without *secrets*."""
    return _hide_in_values(
        [(name, value if name.lower() in PUBLIC_HEADERS else REDACTED) for name, value in headers.items()], secrets
    )


def redact_answer_headers(
    headers: Mapping[str, str], secrets: Iterable[str] = (), hidden: Collection[str] = ()
) -> CIMultiDict[str]:
    """Return the *headers* of a response without *secrets* and the values of sensitive headers.

    URLs lose user, password and the values of sensitive query keys. *hidden* are lower-case names of further headers
    whose values are not shown.
    """
    return _hide_in_values(
        [
            (name, REDACTED if tells_of_answer(name) or name.lower() in hidden else _without_login(value))
            for name, value in headers.items()
        ],
        secrets,
    )


def _without_login(value: str) -> str:
    """Return *value* without user, password and values of sensitive query keys of any URL in it."""
    return _PARAMETERS.sub(_hide_parameter, _USER.sub("", value)) if "//" in value or "?" in value else value


def _hide_in_values(pairs: list[tuple[str, str]], secrets: Iterable[str]) -> CIMultiDict[str]:
    # One check of all of them shows that there is nothing to hide, which is the usual case.
    together = "\n".join([value for _, value in pairs])
    if hide(together, secrets) != together:
        pairs = [(name, value if value is REDACTED else hide(value, secrets)) for name, value in pairs]
    return CIMultiDict(pairs)


_USER = re.compile(r"""(?<=//)[^/?#\s"'<>]*@""")
_PASSWORD = re.compile("//[^/?#:@]*:([^/?#]*)@")
_PARAMETERS = re.compile(r"""([?&#])([^?&#\s"'<>]+)""")


def _hide_parameter(found: re.Match[str]) -> str:
    for part in _NAMED.finditer(found[2]):
        if tells(unquote_plus(part[1])):
            # The following text may belong to the value.
            return f"{found[1]}{found[2][: part.end(1)]}={REDACTED}"
    return found[0]


_NAMED = re.compile("(?:^|[;&])([^;&]*?)(?:=|%3D)[^;&]*", re.IGNORECASE)


def redact_body(body: bytes, secrets: Iterable[str] = (), limit: int | None = None) -> bytes:
    """Return the first *limit* bytes of *body* without secrets that the server echoed.

    Neither the bytes nor any JSON string in them contains a secret. *limit* None means no truncation.
    """
    secrets = _ordered(secrets)
    text = body.decode("utf-8", "surrogateescape")
    hidden = hide(text, secrets)
    clean = hidden == text
    shown = (body if clean else hidden.encode("utf-8", "surrogateescape"))[:limit]
    if clean and _is_literal(text) and _is_clean_in_one_line(text, secrets):
        # All strings appear in the text literally.
        return shown
    try:
        payload = json_in(body if limit is None or len(body) <= limit else shown)
        # JSON has many spellings of a secret, and a secret may look like a number.
        hidden_payload = _in_strings(payload, secrets)
        if clean and hidden_payload == payload:
            return shown
        return json.dumps(hidden_payload, ensure_ascii=False).encode("utf-8", "surrogatepass")[:limit]
    except ValueError:
        return shown
    except RecursionError:
        # Too deep to search here, but another reader with more stack left may parse it.
        return b""


def redact_later(
    info: aiohttp.RequestInfo,
    headers: Mapping[str, str],
    body: bytes,
    *,
    secrets: Iterable[str],
    hidden: Collection[str],
) -> Callable[[], dict[str, object]]:
    """Return a function that returns the redacted attributes of an error, by name.

    *headers* and *body* are those of the response. *secrets* are known in addition to those in the request. *hidden*
    are lower-case names of response headers whose values are not shown. The result is a function because its repr shows
    nothing.
    """
    sent = CIMultiDict(info.headers)  # an auth layer will remove its headers from the request

    def redacted() -> dict[str, object]:
        import aiohttp  # the command line needs only the text functions

        found = secrets_in(info.real_url, sent, secrets)
        text, url = shown_url(info.real_url, found)
        return {
            "url": text,
            "request_info": aiohttp.RequestInfo(url, info.method, redact_headers(sent, found), url),  # type: ignore[arg-type]
            "headers": redact_answer_headers(headers, found, hidden),
            "body": redact_body(body, found, ERROR_BYTES) if body else b"",
        }

    return redacted


# A byte that is not UTF-8, as decoded by surrogateescape.
_STRAY_BYTE = re.compile("[\udc80-\udcff]")


def _is_literal(text: str) -> bool:
    """Return whether JSON in *text* contains each string literally: without escapes, in UTF-8."""
    return "\\" not in text and "\0" not in text and (text.isascii() or not _STRAY_BYTE.search(text))


def _is_clean_in_one_line(text: str, secrets: Iterable[str]) -> bool:
    """Return whether joining the lines of *text* creates no secret that contains a space."""
    if not any(" " in secret for secret in secrets):
        return True
    line = one_line(text)
    return line == text or hide(line, secrets) == line


def _in_strings(value: Any, secrets: Iterable[str]) -> Any:
    if isinstance(value, str):
        hidden = hide(value, secrets)
        return hidden if _is_clean_in_one_line(hidden, secrets) else hide(one_line(hidden), secrets)
    if isinstance(value, list):
        return [_in_strings(item, secrets) for item in value]
    if isinstance(value, dict):
        return {_in_strings(key, secrets): _in_strings(item, secrets) for key, item in value.items()}
    return value


def redact_text(text: str, secrets: Iterable[str] = ()) -> str:
    """Return external *text* as one short line, without *secrets* and control characters."""
    # Join lines first, so that a secret split by removed characters is found.
    line = hide(one_line(text[:_MOST_READ]), secrets)
    return line if len(line) <= _LONGEST_TEXT else line[: _LONGEST_TEXT - 1] + "…"


def one_line(text: str) -> str:
    """Return *text* with each run of whitespace and unprintable characters replaced by one space."""
    line = " ".join(text.split())
    if line.isprintable():
        return line
    return " ".join("".join([char if char.isprintable() else " " for char in line]).split())


class _Secrets(tuple[str, ...]):
    """Texts to remove, in this order."""

    __slots__ = ()


def secrets_in(url: URL, headers: Mapping[str, str], known: Iterable[str] = ()) -> tuple[str, ...]:
    """Return possible secrets of a request, so that they can be removed from the server's messages.

    These are the *known* ones and the values of sensitive headers and query keys.
    """
    found = [*known]
    if url.raw_query_string and one_tells(tuple(url.query)):
        found += [value or name.partition("=")[2] for name, value in url.query.items() if tells(name)]
    if "@" in url.raw_path_qs or "%40" in url.raw_path_qs:
        found += map(unquote, _PASSWORD.findall(unquote(url.raw_path_qs)))
    if ";" in url.raw_path_qs or "%3" in url.raw_path:
        pairs = [_EQUALS.split(part, 1) for part in _SPLIT.split(url.raw_path_qs)]
        found += [unquote_plus(pair[1]) for pair in pairs if len(pair) > 1 and tells(unquote_plus(pair[0]))]
    if sensitive := telling_headers(tuple(headers)):
        found += [value for name, value in headers.items() if name in sensitive]
    cookie = headers.get("Cookie", "")
    return _with_parts(tuple(dict.fromkeys(found)), cookie) if found or cookie else ()


_SPLIT = re.compile("[;/?&]|%3F", re.IGNORECASE)
_EQUALS = re.compile("=|%3D", re.IGNORECASE)


# Cached: a session has few credentials, or one per account, and each request needs their parts.
@lru_cache(maxsize=256)
def _with_parts(given: tuple[str, ...], cookie: str) -> _Secrets:
    # "a=b; c=d": each part is a secret, unless it is a common word.
    parts = {part for value in given for part in _SEPARATORS.split(value)}
    parts |= {pair.partition("=")[2] for pair in cookie.split("; ")}
    values = [*given, *(part for value in given for part in _after_scheme(value))]
    return _in_order({part for part in parts if len(part) >= _SHORTEST_PART} | {*values})


def _ordered(secrets: Iterable[str]) -> Iterable[str]:
    # Once per request, not for each message about it.
    return secrets if isinstance(secrets, _Secrets) or not secrets else _in_order(secrets)


def _in_order(secrets: Iterable[str]) -> _Secrets:
    found = {secret for secret in secrets if len(secret) >= _SHORTEST_SECRET}
    # A server that reads headers as Latin-1, by an older HTTP standard, echoes them in these letters.
    found |= {secret.encode("utf-8", "surrogatepass").decode("latin-1") for secret in found if not secret.isascii()}
    found |= {one_line(secret) for secret in found if not secret.isprintable() or len(secret.split()) > 1}
    # Longest first, so that nothing remains of a secret that contains another.
    kept = (secret for secret in found if len(secret) >= _SHORTEST_SECRET)
    return _Secrets(sorted(kept, key=lambda secret: (-len(secret), secret)))


_SEPARATORS = re.compile(r"[\s;,=]+")


def _after_scheme(value: str) -> Iterable[str]:
    """Return the credential of ``Bearer abc``, and the decoded one of ``Basic dXNlcjpw``."""
    scheme, _, rest = value.partition(" ")
    if scheme.lower() != "basic":
        return (rest.strip(),)
    try:
        pair = b64decode(rest, validate=True)
    except ValueError:
        return (rest,)
    texts = [pair.decode(encoding, "replace") for encoding in ("utf-8", "latin-1")]
    return [rest, *(part for text in texts for part in (text, text.partition(":")[2]))]


def hide(text: str, secrets: Iterable[str]) -> str:
    """Return *text* with each of *secrets* replaced, in any spelling of a URL, JSON or Python."""
    ordered = _ordered(secrets)
    if not ordered:
        return text.replace(_MARK, REDACTED)
    for secret in ordered:
        text = text.replace(secret, _MARK)
    if "%" in text or "+" in text:
        decoded = unquote(text), unquote_plus(text)
        for secret in ordered:
            # The pattern is expensive and needed only if there is a match.
            if secret in decoded[0] or secret in decoded[1]:
                text = re.sub("".join(map(_spelled, secret)), _MARK, text)
    if "\\" in text:
        for secret in ordered:
            text = re.sub("".join(map(_escaped, secret)), _MARK, text)
    return text.replace(_MARK, REDACTED)


def _spelled(char: str) -> str:
    """Return a pattern for *char*, literal or URL-encoded."""
    percent = "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))
    return rf"(?:{re.escape(char)}|(?i:{percent}){'|[+]' if char == ' ' else ''})"


_LETTERS = {"\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}


def _escaped(char: str) -> str:
    """Return a pattern for *char*, literal or escaped as in JSON or in Python's repr of str or bytes."""
    octets = char.encode("utf-8", "surrogatepass")
    units = char.encode("utf-16-be", "surrogatepass").hex()
    spellings = [
        rf"\\?{re.escape(char)}",
        *([rf"\\{_LETTERS[char]}"] if char in _LETTERS else []),
        "(?i:" + "".join(rf"\\x{octet:02x}" for octet in octets) + ")",
        "(?i:" + "".join(rf"\\u{units[at : at + 4]}" for at in range(0, len(units), 4)) + ")",
    ]
    return f"(?:{'|'.join(spellings)})"
