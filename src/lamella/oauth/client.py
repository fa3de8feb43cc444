"""The client that requests a token, with a secret or a private key."""

from __future__ import annotations

import time
import uuid
from base64 import b64encode
from typing import Any, Final, Literal
from urllib.parse import quote_plus, urlencode

_LASTS: Final = 300
"""Lifetime of an assertion in seconds."""
_KINDS: Final = {"RS": "RSAKey", "PS": "RSAKey", "ES": "ECKey", "Ed": "OKPKey"}


class Hidden:
    """A secret that no repr shows."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value: Final[Any] = value


class TokenRequest:
    """The parameters of a token request. They contain secrets, so they appear in no repr and no local variable."""

    __slots__ = ("authorization", "parameters", "secret")

    def __init__(self, **parameters: str | None) -> None:
        self.parameters: Final[dict[str, str]] = {
            name: value for name, value in parameters.items() if value is not None
        }
        self.authorization: str | None = None
        """The header that identifies the client. None: the parameters identify it."""
        self.secret: str | None = None
        """The client's secret, which the header contains in encoded form. None: no secret, or it is in a parameter."""

    @property
    def body(self) -> bytes:
        """The parameters as a form (RFC 6749, appendix B)."""
        return urlencode(self.parameters).encode()

    @property
    def secrets(self) -> tuple[str, ...]:
        """Values that must never be shown."""
        telling = ("client_secret", "client_assertion", "refresh_token")
        found = [self.parameters[name] for name in telling if name in self.parameters]
        return (*found, *(text for text in (self.authorization, self.secret) if text))


class Client:
    """A client with a secret (RFC 6749, section 2.3.1), or without one.

    Args:
        client_id: Its id.
        secret: Its secret. None means a public client.
        method: How the client authenticates: ``"basic"`` in the header ``Authorization`` (client_secret_basic),
            ``"post"`` in the form (client_secret_post).

    Raises:
        ValueError: *client_id* or *secret* is empty, or *method* is unknown.
    """

    __slots__ = ("_method", "_secret", "client_id")

    def __init__(
        self, client_id: str, secret: str | None = None, *, method: Literal["basic", "post"] = "basic"
    ) -> None:
        self._secret = secret
        del secret  # a traceback would show it
        self.client_id: Final[str] = _checked(client_id)
        self._method = method
        if self._secret is not None and not isinstance(self._secret, str):
            raise ValueError(f"secret must be a string, got {type(self._secret).__name__}")
        if self._secret is not None and not self._secret:
            raise ValueError("secret must not be empty")
        if method not in {"basic", "post"}:
            raise ValueError(f"method must be 'basic' or 'post', got {method!r}")

    def sign(self, request: TokenRequest, token_url: str) -> None:
        """Add the client's authentication to *request* for *token_url*."""
        if self._secret is None or self._method == "post":
            request.parameters["client_id"] = self.client_id
            if self._secret is not None:
                request.parameters["client_secret"] = self._secret
        else:
            pair = f"{quote_plus(self.client_id)}:{quote_plus(self._secret)}"
            request.secret = self._secret  # a server may echo the decoded form
            request.authorization = f"Basic {b64encode(pair.encode()).decode()}"

    def __repr__(self) -> str:
        return f"Client({self.client_id!r})"


class KeyClient:
    """A client with a private key (private_key_jwt: RFC 7523, section 2.2). Requires ``lamella[oauth]``.

    Args:
        client_id: Its id.
        key: Its private key, as PEM without a password, or as a JWK in a dict.
        algorithm: The signature of the assertion: RSA (RS256, PS256, …), elliptic curves (ES256, …) or EdDSA.
        key_id: The ``kid`` of the assertion. None means no ``kid``.
        audience: The ``aud`` of the assertion. None means the URL of the token endpoint.

    Raises:
        ValueError: *client_id* is empty, *algorithm* is unknown, or *key* is not a private key for it.
        ImportError: The extra is not installed.
    """

    __slots__ = ("_algorithm", "_audience", "_key", "_key_id", "client_id")

    def __init__(
        self,
        client_id: str,
        key: str | bytes | dict[str, Any],
        *,
        algorithm: str = "RS256",
        key_id: str | None = None,
        audience: str | None = None,
    ) -> None:
        self._key = _private_key(Hidden(key), algorithm)
        del key  # a traceback would show it
        if self._key is None:
            raise ValueError(f"key must be a private key for {algorithm}, or the algorithm is unknown")
        self.client_id: Final[str] = _checked(client_id)
        self._algorithm, self._key_id, self._audience = algorithm, key_id, audience

    def sign(self, request: TokenRequest, token_url: str) -> None:
        """Add a new assertion to *request* for *token_url*."""
        from joserfc import jwt

        now = int(time.time())
        claims = {
            "iss": self.client_id,
            "sub": self.client_id,
            "aud": self._audience or token_url,
            "jti": uuid.uuid4().hex,
            "iat": now,
            "exp": now + _LASTS,
        }
        header = {"alg": self._algorithm, **({} if self._key_id is None else {"kid": self._key_id})}
        request.parameters["client_id"] = self.client_id
        request.parameters["client_assertion_type"] = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
        request.parameters["client_assertion"] = jwt.encode(header, claims, self._key, [self._algorithm])

    def __repr__(self) -> str:
        return f"KeyClient({self.client_id!r})"


def _private_key(key: Hidden, algorithm: str) -> Any:
    """Return *key* in joserfc's form; None if it is not a key for *algorithm*."""
    try:
        from joserfc import jwk
    except ModuleNotFoundError:
        raise ModuleNotFoundError("joserfc is missing: pip install 'lamella[oauth]'", name="joserfc") from None
    kind = getattr(jwk, _KINDS.get(algorithm[:2], ""), None)
    if kind is None:
        return None
    try:
        found = kind.import_key(key.value)
    except Exception:  # noqa: BLE001 - its text and its frames may hold the key
        return None
    return found if found.is_private else None


def _checked(client_id: object) -> str:
    if isinstance(client_id, str) and client_id:
        return client_id
    fault = "not be empty" if client_id in ("", None) else f"be a string, got {type(client_id).__name__}"
    raise ValueError(f"client_id must {fault}")
