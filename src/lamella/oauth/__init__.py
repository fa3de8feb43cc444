"""OAuth 2: tokens for ``HeaderAuth`` from a token endpoint (RFC 6749)."""

from lamella.oauth.client import Client, KeyClient
from lamella.oauth.endpoint import RULES
from lamella.oauth.grants import Options, client_credentials, refresh_token

__all__ = ["RULES", "Client", "KeyClient", "Options", "client_credentials", "refresh_token"]
