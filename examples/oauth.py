"""An API with OAuth 2: client credentials, a token that is revoked early, and a refresh token that is rotated.

python examples/oauth.py

It starts an API and an authorization server. Time is virtual.
"""

from __future__ import annotations

import asyncio
from collections import Counter

import aiohttp
from aiohttp import BasicAuth, web

from lamella import HeaderAuth, oauth, stack
from lamella.testing import run_virtual


class Api:
    """An API and its authorization server, for the client "shop" with a fictitious secret."""

    def __init__(self) -> None:
        self.valid: set[str] = set()
        self.refresh_token = "first"  # noqa: S105 - made up
        self.asked = Counter[str]()

    async def issue(self, request: web.Request) -> web.Response:
        form, client = await request.post(), BasicAuth.decode(request.headers["Authorization"])
        grant = str(form["grant_type"])
        self.asked[grant] += 1
        if (client.login, client.password) != ("shop", "made-up"):
            return web.json_response({"error": "invalid_client"}, status=401)
        token = f"{grant}-{self.asked[grant]}"
        issued = {"access_token": token, "token_type": "Bearer", "expires_in": 3600}
        if grant == "refresh_token":
            if form["refresh_token"] != self.refresh_token:
                return web.json_response({"error": "invalid_grant"}, status=400)
            issued["refresh_token"] = self.refresh_token = f"refresh-{self.asked[grant]}"
        self.valid.add(token)
        return web.json_response(issued)

    async def order(self, request: web.Request) -> web.Response:
        if request.headers["Authorization"].removeprefix("Bearer ") not in self.valid:
            return web.Response(status=401)
        return web.Response()


async def main() -> None:
    api = Api()
    app = web.Application()
    app.router.add_post("/token", api.issue)
    app.router.add_post("/orders", api.order)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def order(session: aiohttp.ClientSession, number: int) -> int:
        async with session.post("/orders", json={"number": number}) as response:
            return response.status

    client = oauth.Client("shop", "made-up")
    tokens = oauth.client_credentials(f"{url}/token", client)
    auth = HeaderAuth({"Authorization": tokens}, origin=url)
    async with aiohttp.ClientSession(url, middlewares=stack(auth=auth)) as session:
        statuses = await asyncio.gather(*(order(session, number) for number in range(100)))
        print(f"the client itself: {Counter(statuses)}, {api.asked['client_credentials']} token request")
        api.valid.clear()  # revoked
        statuses = await asyncio.gather(*(order(session, number) for number in range(100)))
        print(f"revoked: {Counter(statuses)}, {api.asked['client_credentials']} token requests")

    kept = ["first"]  # in a real service, the user's row in a database
    tokens = oauth.refresh_token(f"{url}/token", client, load=lambda: kept[-1], store=kept.append)
    auth = HeaderAuth({"Authorization": tokens}, origin=url)
    async with aiohttp.ClientSession(url, middlewares=stack(auth=auth)) as session:
        print("for a user:", await order(session, 1))
        await asyncio.sleep(3600)
        print("an hour later:", await order(session, 2), "- stored refresh tokens:", kept)
    await runner.cleanup()


if __name__ == "__main__":
    run_virtual(main())
