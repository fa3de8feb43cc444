"""An authorization server of RFC 6749, which checks who asks, rotates refresh tokens, and fails as it is told to."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_plus

from aiohttp import web

__all__ = ["AuthorizationServer"]


class AuthorizationServer:
    """A handler. ``answers`` are given in place of its own, one for each request; None is its own."""

    def __init__(self, clients: dict[str, str], *, expires_in: object = 3600) -> None:
        self.clients = clients
        self.expires_in = expires_in
        self.refresh_tokens: dict[str, str] = {}
        """The valid one of each client."""
        self.answers: list[Callable[[dict[str, str]], web.Response] | None] = []
        self.forms: list[dict[str, str]] = []
        self.headers: list[str | None] = []
        self.issued = 0
        self.more: dict[str, Any] = {}

    async def __call__(self, request: web.Request) -> web.Response:
        form = {name: str(value) for name, value in (await request.post()).items()}
        self.forms.append(form)
        authorization = request.headers.get("Authorization")
        self.headers.append(authorization)
        answer = self.answers.pop(0) if self.answers else None
        if answer is not None:
            return answer({**form, "authorization": authorization or ""})
        client, secret = form.get("client_id", ""), form.get("client_secret", "")
        if authorization is not None:
            pair = b64decode(authorization.removeprefix("Basic ")).decode()
            client, secret = (unquote_plus(part) for part in pair.split(":"))
        if self.clients.get(client) != secret and "client_assertion" not in form:
            return web.json_response({"error": "invalid_client", "error_description": f"not {secret}"}, status=401)
        renews = form["grant_type"] == "refresh_token"
        if renews and form["refresh_token"] != self.refresh_tokens[client]:
            said = f"{form['refresh_token']} is unknown"
            return web.json_response({"error": "invalid_grant", "error_description": said}, status=400)
        self.issued += 1
        issued = {"access_token": f"{client}-{self.issued}", "token_type": "Bearer", **self.more}
        if self.expires_in is not ...:
            issued["expires_in"] = self.expires_in
        if renews:
            issued["refresh_token"] = self.refresh_tokens[client] = f"zq-refresh-{client}-{self.issued}"
        return web.json_response(issued)
