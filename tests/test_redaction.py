"""No credential is shown, and what is harmless stays readable."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from urllib.parse import quote, quote_plus, unquote, unquote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from multidict import CIMultiDict
from tests.examples import CHARACTERS
from yarl import URL

from lamella.error_body import parse
from lamella.redaction import (
    REDACTED,
    redact_body,
    redact_headers,
    redact_text,
    redact_url,
    secrets_in,
)

TEXT = st.text(CHARACTERS, max_size=40)
# What stands in place of a secret must not be taken for one: hence no letter of "REDACTED".
# And what is a part of the URL's own scheme or host is found in them by chance: they stay.
NO_KEY = "http://example.com/v1/x"
SECRETS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="REDACT"), min_size=4, max_size=40
).filter(lambda secret: "".join(secret.split()) == secret and secret.isprintable() and secret not in NO_KEY)


@given(TEXT, SECRETS, TEXT)
def test_a_secret_in_a_text_is_not_shown(before: str, secret: str, after: str) -> None:
    assert secret not in redact_text(before + secret + after, [secret])


@given(TEXT, SECRETS, TEXT)
@example("", "schlüssel-ключ-鍵-🔑", "")
def test_a_secret_decoded_as_latin_1_is_not_shown(before: str, secret: str, after: str) -> None:
    read = secret.encode().decode("latin-1")
    sent = json.dumps({"you sent": before + read + after})
    for shown in (redact_text(before + read + after, [secret]), redact_body(sent.encode(), [secret]).decode()):
        assert read not in shown
        assert json.dumps(read)[1:-1] not in shown


def test_a_secret_escaped_by_json_or_python_is_not_shown() -> None:
    secret = "schlüssel-ключ-鍵-🔑"  # in JSON the last letter takes two escapes
    assert redact_text(f"you sent {json.dumps(secret)}", [secret]) == f'you sent "{REDACTED}"'
    assert redact_text(f"you sent {secret.encode()!r}", [secret]) == f"you sent b'{REDACTED}'"


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b'{"a":  [1.50, "x"]}', b'{"a":  [1.50, "x"]}'),
        (b'{"a":  ["4400-key"]}', b'{"a": ["REDACTED"]}'),
        (b'[[{"4400-key": {"4400-key": null}}]]', b'[[{"REDACTED": {"REDACTED": null}}]]'),
        (json.dumps({"a": "4400-key"}).encode("utf-16"), b'{"a": "REDACTED"}'),
        # What looks like one and is a number stays, and so the rest can still be read.
        (b'{"a":  4400}', b'{"a": 4400}'),
    ],
)
def test_redacted_json_is_valid_and_harmless_values_are_unchanged(body: bytes, shown: bytes) -> None:
    assert redact_body(body, ["4400-key", "4400"]) == shown
    assert parse(shown).payload == json.loads(shown)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_too_deeply_nested_json_contains_no_secret(encoding: str) -> None:
    body = ("[" * 100_000 + '"4400\\u002dkey' + "]" * 100_000).encode(encoding)
    assert "key" not in redact_body(body, ["4400-key"]).decode(encoding)


@pytest.mark.parametrize("written", [b"key\xff1234", b"k%65y\xff1234", b"k\\u0065y\xff1234"])
def test_a_secret_of_non_text_bytes_is_not_shown(written: bytes) -> None:
    assert redact_body(b"you sent " + written, ["key\udcff1234"]) == b"you sent REDACTED"


@pytest.mark.parametrize(
    "written", [quote_plus, quote, lambda text: quote(text, safe=""), lambda text: quote(text, safe="/+=:@!$&'()*,;")]
)
@given(secret=SECRETS)
@example(secret="ab+/cd==")
def test_a_url_encoded_secret_is_not_shown(written: Callable[[str], str], secret: str) -> None:
    shown = redact_text(f"no such page: /v1/{written(secret)}/x", [secret])

    assert secret not in unquote(shown)
    assert secret not in unquote_plus(shown)


@pytest.mark.parametrize("gap", ["\n", "\t", "  ", "\x00", "\u2028"])
def test_joining_lines_does_not_reveal_a_split_secret(gap: str) -> None:
    assert "horse battery" not in redact_text(f"wrong: horse{gap}battery!", ["horse battery"])


@pytest.mark.parametrize("gap", ["\n", "  ", "\x00"])
def test_a_secret_with_whitespace_is_not_shown_after_cleanup(gap: str) -> None:
    secret = f"horse{gap}battery"
    assert redact_text(f"wrong: {secret}!", [secret]) == f"wrong: {REDACTED}!"


@pytest.mark.parametrize("secrets", [("key-1", "key-12345"), ("key-12345", "key-1"), ("2345", "key-12345")])
def test_a_secret_that_contains_another_is_removed_completely(secrets: tuple[str, ...]) -> None:
    assert redact_text("refused: key-12345", secrets) == f"refused: {REDACTED}"
    assert redact_url(URL(f"{NO_KEY}/key-12345"), secrets) == f"{NO_KEY}/{REDACTED}"


def test_too_short_values_are_not_redacted() -> None:
    assert redact_text("a tax of 7 %", ["tax", "7", "a", ""]) == "a tax of 7 %"
    assert redact_url(URL(f"{NO_KEY}/tax"), ["tax", ""]) == f"{NO_KEY}/tax"


@given(st.text(CHARACTERS))
@example("\x1b[31mred\x1b[0m\r\n\x9b2J\u202eleft\u2028\x00\ud800")
@example("x" * 100_000)
def test_external_text_becomes_one_short_printable_line(text: str) -> None:
    line = redact_text(text)

    assert line.isprintable()
    assert len(line) <= 300
    assert line == redact_text(line)


@pytest.mark.parametrize("length", [299, 300, 301, 5000])
def test_a_text_is_truncated_only_if_it_is_too_long(length: int) -> None:
    shown = redact_text("x" * length)

    assert shown == ("x" * length if length <= 300 else "x" * 299 + "…")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("place", ["path", "value", "name", "fragment", "user", "password"])
@given(secret=SECRETS)
@example(secret="ab/c+d=")
@example(secret="p&q=r;s%20#")
@example(secret="päss@wört:1")
def test_a_secret_anywhere_in_a_url_is_not_shown(place: str, secret: str) -> None:
    url = URL(NO_KEY)
    url = {
        "path": lambda: url.with_path(f"/v1/{secret}/x"),
        "value": lambda: url.with_query([("q", "1"), ("q", f"x{secret}y")]),
        "name": lambda: url.with_query({f"x{secret}": "1"}),
        "fragment": lambda: url.with_fragment(secret),
        "user": lambda: url.with_user(secret),
        "password": lambda: url.with_user("user").with_password(secret),
    }[place]()

    shown = redact_url(url, [secret])

    assert secret not in shown
    assert secret not in unquote(shown)
    assert secret not in unquote_plus(shown)


@pytest.mark.parametrize("place", ["path", "value"])
def test_a_secret_with_a_space_in_a_url_is_not_shown(place: str) -> None:
    url = URL(NO_KEY).with_path("/v1/horse battery") if place == "path" else URL(NO_KEY).with_query(q="horse battery")

    assert "horse" not in redact_url(url, ["horse battery"])


@given(
    st.lists(st.tuples(st.sampled_from(["limit", "page", "companyId", "q", "ü", "a b"]), TEXT)),
    st.text("abc ü%/+&=?#", max_size=20),
)
def test_harmless_parts_of_a_url_are_unchanged(query: list[tuple[str, str]], path: str) -> None:
    url = URL("http://example.com:8080").with_path(f"/x{path}").with_query(query)
    shown = URL(redact_url(url, ["not in there"]))

    assert list(shown.query.items()) == list(url.query.items()) == query
    assert (shown.origin(), shown.path) == (url.origin(), url.path)
    assert redact_url(shown) == redact_url(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://user:hunter2@h/x", "http://h/x"),
        ("http://:hunter2@h/x", "http://h/x"),
        ("http://hunter2@h:8080/x", "http://h:8080/x"),
        ("http://user:hunter2@[::1]:8080/x?token=a", "http://[::1]:8080/x?token=REDACTED"),
        ("http://[fe80::1%25eth0]/x", "http://[fe80::1%25eth0]/x"),
        ("http://münchen.de/ü?ü=ß", "http://xn--mnchen-3ya.de/%C3%BC?%C3%BC=%C3%9F"),
        ("http://h/a%2Fb%20c", "http://h/a%2Fb%20c"),
        ("http://h/?a=1&token=x&a=2&token=y&b=", "http://h/?a=1&token=REDACTED&a=2&token=REDACTED&b="),
        ("http://h/?a=&api_key=&b=%26%3D%23%25", "http://h/?a=&api_key=REDACTED&b=%26%3D%23%25"),
        ("http://h/?%61pi%5Fkey=v", "http://h/?api_key=REDACTED"),
        ("http://h/?API_KEY=v", "http://h/?API_KEY=REDACTED"),
        ("http://h/?a=1#access_token=v", "http://h/?a=1"),
        ("http://h/?a&b=1", "http://h/?a&b=1"),
        ("http://h/?a=x%3Ftoken%3Dv", "http://h/?a=x?token%3Dv"),
        ("/relative?key=v&page=2", "/relative?key=REDACTED&page=2"),
        ("http://h/a;jsessionid=v", "http://h/a;jsessionid=REDACTED"),
        ("http://h/a;page=2;auth%54oken=v%2Fw;b/c;d=1?e=;f=1", "http://h/a;page=2;authToken=REDACTED/c;d=1?e=;f=1"),
        ("http://h/?a=1;token=v/w;b=2&c=d;key=v", "http://h/?a=1;token=REDACTED&c=d;key=REDACTED"),
        ("http://h/a%3Fpage=2&token=v&b=1/c?d=1", "http://h/a%3Fpage=2&token=REDACTED/c?d=1"),
        ("http://h/a%3ftoken%3dv", "http://h/a%3Ftoken=REDACTED"),
        ("http://h/a%3Fpage=2/b", "http://h/a%3Fpage=2/b"),
        ("http://h/?access_token%3Dv&b=1", "http://h/?access_token=REDACTED&b=1"),
        ("http://h/?next=https%3A%2F%2Fu%3Ahunter2%40g%2Fx&b=1", "http://h/?next=https://g/x&b=1"),
        ("http://h/?next=https://u:hunter2@g/x?token=v%26a=1", "http://h/?next=https://g/x?token%3DREDACTED%26a%3D1"),
        ("http://h/?next=https%3A%2F%2Fg%2Fx&at=a@b", "http://h/?next=https://g/x&at=a@b"),
        ("http://h/get/https://u:hunter2@g/x@2", "http://h/get/https://g/x@2"),
        ("http://h/get/https%3a%2f%2fu%3Ahunter2%40g%2Fx", "http://h/get/https:%2F%2Fg%2Fx"),
        ("http://h/@me/a@b", "http://h/@me/a@b"),
        ("", ""),
    ],
)
def test_a_url_is_shown_without_credentials(url: str, shown: str) -> None:
    assert redact_url(URL(url)) == shown


@pytest.mark.parametrize("place", ["?next=", "get/"])
@pytest.mark.parametrize("inner", ["https://u:zq-password@g/", "https%3A%2F%2Fu%3Azq-password%40g%2F?b=//["])
def test_the_password_of_a_url_in_a_url_is_a_secret_of_the_request(place: str, inner: str) -> None:
    url = URL(f"http://h/{place}{inner}")
    assert redact_text("no zq-password", secrets_in(url, {})) == f"no {REDACTED}"


def test_credentials_after_a_semicolon_are_secrets_of_the_request() -> None:
    url = URL("http://h/a;jsessionid=zq%2Fsession?page=1;token=zq-token&b=2")
    assert redact_text("unknown session zq/session of zq-token", secrets_in(url, {})) == (
        f"unknown session {REDACTED} of {REDACTED}"
    )


@pytest.mark.parametrize(
    "url", ["http://h/a%3Fpage=1&token=zq-token", "http://h/a%3Ftoken%3Dzq-token", "?token%3Dzq-token"]
)
def test_an_escaped_parameter_is_a_secret_of_the_request(url: str) -> None:
    assert redact_text("no zq-token", secrets_in(URL(url), {})) == f"no {REDACTED}"


@pytest.mark.parametrize(
    "name",
    [
        "api_key",
        "apikey",
        "X-Api-Key",
        "access_token",
        "id_token",
        "client_secret",
        "password",
        "passwd",
        "passphrase",
        "pass",
        "pwd",
        "sig",
        "signature",
        "X-Amz-Signature",
        "X-Amz-Credential",
        "X-Amz-Security-Token",
        "auth",
        "authorization",
        "session_id",
        "jwt",
        "code",
        "state",
        "otp",
        "pin",
    ],
)
def test_the_value_of_a_sensitive_query_key_is_not_shown(name: str) -> None:
    for spelled in (name, name.upper()):
        assert redact_url(URL(NO_KEY).with_query({spelled: "v"})) == f"{NO_KEY}?{spelled}={REDACTED}"


@pytest.mark.parametrize(
    "name",
    ["limit", "page", "lastModifiedAt", "companyId", "environmentName", "sort", "q", "design", "spin"],
)
def test_the_value_of_any_other_query_key_is_shown(name: str) -> None:
    assert redact_url(URL(NO_KEY).with_query({name: "v"})) == f"{NO_KEY}?{name}=v"


def test_only_known_harmless_header_values_are_shown() -> None:
    headers = CIMultiDict(
        [
            ("Content-Type", "a"),
            ("AUTHORIZATION", "Bearer hunter2"),
            ("set-cookie", "hunter2"),
            ("Set-Cookie", "hunter3"),
            ("X-ACCOUNT-KEY", "hunter2"),
            ("Location", "/?token=hunter2"),
            ("X-Unknown", "hunter2"),
            ("retry-after", "7"),
            ("Vary", "b"),
            ("Vary", "c"),
        ]
    )
    assert list(redact_headers(headers).items()) == [
        ("Content-Type", "a"),
        ("AUTHORIZATION", REDACTED),
        ("set-cookie", REDACTED),
        ("Set-Cookie", REDACTED),
        ("X-ACCOUNT-KEY", REDACTED),
        ("Location", REDACTED),
        ("X-Unknown", REDACTED),
        ("retry-after", "7"),
        ("Vary", "b"),
        ("Vary", "c"),
    ]


@pytest.mark.parametrize("secret", ["hunter22", "hun/ter 22", "DACT"])
@pytest.mark.parametrize("written", [str, quote_plus, lambda secret: json.dumps(secret)[1:-1]])
def test_a_secret_in_the_value_of_a_harmless_header_is_not_shown(secret: str, written: Callable[[str], str]) -> None:
    headers = [("Vary", "a"), ("Server", f"you sent {written(secret)}!"), ("X-Unknown", "u"), ("Allow", "GET")]

    shown = redact_headers(CIMultiDict(headers), [secret])

    assert list(shown.items()) == [
        ("Vary", "a"),
        ("Server", f"you sent {REDACTED}!"),
        ("X-Unknown", REDACTED),
        ("Allow", "GET"),
    ]


@pytest.mark.parametrize("secret", ["hunter22", "hün/ter 22", "hun\ufffd22"])
@pytest.mark.parametrize(
    "sent",
    [
        lambda text: text.encode(),
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.encode("utf-16"),
        lambda text: text.encode("utf-16-le"),
        lambda text: text.encode("utf-32-be"),
        lambda text: text.replace("u", "\\u0075").encode(),
        lambda text: text.replace("/", "\\/").encode(),
        lambda text: text.encode("utf-8").replace("\ufffd".encode(), b"\xff"),
        lambda text: json.dumps(json.loads(text)).encode(),
    ],
)
def test_json_strings_of_a_body_contain_no_secret(secret: str, sent: Callable[[str], bytes]) -> None:
    body = sent(f'{{"m": ["a {secret} b"], "{secret}": 1}}')
    text = body.decode(json.detect_encoding(body), "replace")

    assert json.loads(text)
    shown = redact_body(body, [secret])

    assert parse(shown).payload == {"m": [f"a {REDACTED} b"], REDACTED: 1}
    assert secret not in shown.decode(json.detect_encoding(shown), "replace")


def test_escaped_json_strings_of_a_body_contain_no_secret() -> None:
    body = json.dumps({"m": "you sent hun\tter22"}).encode()

    shown = redact_body(body, ["hun\tter22"])

    assert parse(shown).payload == json.loads(shown) == {"m": f"you sent {REDACTED}"}


@pytest.mark.parametrize("message", ["no such account", "no such account: Müller, 北京"])
def test_a_body_without_secrets_is_unchanged_and_not_parsed(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    body = json.dumps({"message": message, "number": 4400}, ensure_ascii=False).encode()
    monkeypatch.setattr(json, "loads", None)

    assert redact_body(body, ["hunter22", "horse battery"]) is body


@pytest.mark.parametrize("gap", ["  ", "\u2028", "\x7f ", "\\n", "\\t ", "\\u0001"])
def test_joining_message_lines_reveals_no_secret_with_a_space(gap: str) -> None:
    body = f'{{"message": "wrong: horse{gap}battery!"}}'.encode()
    [message] = parse(redact_body(body, ["horse battery"])).details

    assert "horse battery" not in redact_text(message)


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("X-API-KEY", "hunter22", "hunter22"),
        ("x-account-key", "hunter22", "hunter22"),
        ("Authorization", "Bearer hunter22", "hunter22"),
        ("authorization", "bearer  hunter22", "hunter22"),
        ("Proxy-Authorization", "Bearer hunter22", "hunter22"),
        ("Authorization", 'Digest username="u", response="hunter22"', '"hunter22"'),
        ("Cookie", "a=1; sid=hunter22; b=2", "hunter22"),
        ("X-Client-Secret", "hunter22", "hunter22"),
        ("X-Auth", "hunter22", "hunter22"),
        ("Authorization", "Basic " + b64encode(b"user:hunter22").decode(), "hunter22"),
        ("Authorization", "basic " + b64encode(b"user:hunter22").decode(), "user:hunter22"),
        ("Authorization", "Basic " + b64encode(b"user:hun:ter22").decode(), "hun:ter22"),
        ("Authorization", "Basic " + b64encode("user:pässwort".encode()).decode(), "pässwort"),
        ("Authorization", "Basic " + b64encode("user:pässwort".encode("latin-1")).decode(), "pässwort"),
        ("Authorization", "Basic hunter22=", "hunter22"),
        ("Authorization", "Bearer pa55", "pa55"),
        ("Authorization", "Bearer  pa55 ", "pa55"),
        ("Authorization", "Basic pa-5", "pa-5"),  # not in Base64
        ("Cookie", "a=1; sid=hun=ter=22; b=2", "hun=ter=22"),
        ("Authorization", "Basic " + b64encode(b"user:pa55").decode(), "pa55"),
    ],
)
def test_the_credential_in_a_header_counts_as_a_secret(name: str, value: str, secret: str) -> None:
    assert secret in secrets_in(URL(NO_KEY), {name: value})
    assert value in secrets_in(URL(NO_KEY), {name: value})


def test_the_scheme_of_a_header_does_not_count_as_a_secret() -> None:
    headers = {"Authorization": "Bearer hunter22", "Proxy-Authorization": "Basic " + b64encode(b"u:hunter22").decode()}
    assert not {"Bearer", "Basic"} & set(secrets_in(URL(NO_KEY), headers))


def test_short_parts_of_a_credential_do_not_count_as_secrets() -> None:
    """They are words, as the name of a cookie is."""
    secrets = secrets_in(URL(NO_KEY), {"Cookie": "company=eightlet"})
    assert secrets == ("company=eightlet", "eightlet")


def test_the_secrets_of_a_request_are_ordered_longest_first() -> None:
    url = URL(f"{NO_KEY}?api_key=query-key&page=harmless&token=abc")
    secrets = secrets_in(url, {"X-API-KEY": "header-key-9", "Accept": "text/plain", "X-Token": "xyz"}, ["known", "no"])

    assert secrets == ("header-key-9", "query-key", "known")
