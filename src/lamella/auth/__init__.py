"""``HeaderAuth``: credentials in headers, for one origin; ``Tokens``: credentials that are fetched and expire."""

from lamella.auth.header_auth import HeaderAuth, HeaderValue
from lamella.auth.token import Token
from lamella.auth.tokens import Tokens

__all__ = ["HeaderAuth", "HeaderValue", "Token", "Tokens"]
