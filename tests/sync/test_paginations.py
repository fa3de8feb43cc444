"""Each way to page: read by ``records`` and by a sync, from real servers that state no more than they must."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.servers import Serve

import lamella
from lamella import HTTP_RULES, BadRequest, HeaderAuth, Source, stack, sync
from lamella.batch import Journal
from lamella.sync import Cursor, LinkHeader, NextUrl, Numbered, Offset, Part
from lamella.sync import page as page_module

Record = dict[str, Any]
RULES = HTTP_RULES.scaled(0.0001)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "_PAUSES", (0.0, 0.0))


def numbered(many: int) -> list[Record]:
    return [{"id": number, "at": f"2026-01-01T00:{number // 60:02}:{number % 60:02}Z"} for number in range(many)]


@dataclass
class Api:
    """A list with all ways to page at once."""

    records: list[Record]
    cap: int = 1000
    counts: tuple[str, ...] = ()
    meanwhile: Callable[[Api], object] = lambda api: None
    """Called after each answer."""
    answer: Callable[[Api, int, Record], web.Response | None] = lambda api, start, body: None
    """Given where the page begins, and the body: another answer."""
    queries: list[dict[str, str]] = field(default_factory=list)

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        query = dict(request.query)
        self.queries.append(query)
        size = min(int(query.get("limit", 10)), self.cap)
        start = int(query.get("start") or query.get("offset") or (int(query.get("page", 1)) - 1) * size)
        found = [each for each in self.records if each["at"] >= query.get("since", "")]
        after = start + size
        url = f"{request.path}?limit={size}&start={after}" if after < len(found) else None
        body: Record = {
            "result": {"items": found[start:after]},
            "meta": {"total": len(found)} if "total" in self.counts else {},
            "next": str(after) if url else None,
            "links": {"next": url},
        }
        if "pages" in self.counts:
            body["meta"]["pages"] = -(-len(found) // size)
        links = {"Link": f'<{url}>; rel="next", </>; rel="first"'} if url else {}
        other = self.answer(self, start, body)
        self.meanwhile(self)
        return web.json_response(body, headers=links) if other is None else other


SOURCE = Source(
    "api/items", records="result.items", changed="at", since="since", total="meta.total", total_pages="meta.pages"
)
PAGINATIONS = {
    "numbers": Numbered(page_size=10),
    "offsets": Offset(page_size=10),
    "a cursor": Cursor("next", "start", page_size=10),
    "a Link header": LinkHeader(page_size=10),
    "a URL in the body": NextUrl("links.next", page_size=10),
}
CHAINS = {name: each for name, each in PAGINATIONS.items() if not each.parallel}
every_way = pytest.mark.parametrize("way", PAGINATIONS)
every_chain = pytest.mark.parametrize("way", CHAINS)


async def synced(path: Path, url: str, source: Source, **options: Any) -> tuple[Part, list[Record]]:
    async with (
        aiohttp.ClientSession(url, middlewares=stack(RULES)) as session,
        Journal.open(path / "journal", batch="test") as journal,
    ):
        report = await sync.run(session, {"items": source}, journal=journal, output=path / "out.jsonl", **options)
    [part] = report.parts
    return part, [json.loads(line)["record"] for line in (path / "out.jsonl").read_text().splitlines()]


def by_id(records: list[Record]) -> list[Record]:
    return sorted(records, key=lambda each: str(each["id"]))


class TestAllWays:
    @every_way
    @pytest.mark.parametrize("counts", [(), ("total",), ("pages",), ("total", "pages")])
    @pytest.mark.parametrize("many", [0, 1, 10, 35])
    async def test_every_pagination_reads_all_records(
        self, serve: Serve, tmp_path: Path, way: str, counts: tuple[str, ...], many: int
    ) -> None:
        api, source = Api(numbered(many), counts=counts), replace(SOURCE, pages=PAGINATIONS[way])
        url = await serve(api)
        part, found = await synced(tmp_path, url, source)
        assert (part.done, part.error, found) == (True, None, by_id(api.records))
        assert (part.total is None) == ("total" not in counts)
        # One empty page does not show the end of a list without counts, unless a short page was before it.
        is_uncounted = not counts or (counts == ("pages",) and source.pages.by_offset)
        is_doubtful = is_uncounted and (many == 0 or (many == 10 and source.pages.parallel))
        assert len(api.queries) <= -(-many // 10) + (1 if not is_doubtful else 3 if many else 2)
        async with aiohttp.ClientSession(url, middlewares=stack(RULES)) as session:
            assert [each async for each in lamella.records(session, source)] == api.records
            pages = [each async for each in lamella.pages(session, source)]
        assert [page.number for page in pages] == list(range(1, max(1, -(-many // 10)) + 1))

    @pytest.mark.sampled(1)
    @every_way
    async def test_the_next_run_requests_only_changes(self, serve: Serve, tmp_path: Path, way: str) -> None:
        api, source = Api(numbered(35), counts=("total",)), replace(SOURCE, pages=PAGINATIONS[way])
        url = await serve(api)
        await synced(tmp_path, url, source)
        api.queries.clear()
        api.records[3] = {"id": 3, "at": "2026-01-02T00:00:00Z"}
        part, found = await synced(tmp_path, url, source, lookback=0)
        assert (part.since, part.records, found) == ("2026-01-01T00:00:34.000Z", 1, by_id(api.records))
        assert [query["since"] for query in api.queries] == ["2026-01-01T00:00:34.000Z"]
        part, _ = await synced(tmp_path, url, source, lookback=3600)
        assert part.since == "2026-01-01T23:00:00.000Z"

    async def test_other_parameters_select_another_list(self, serve: Serve, tmp_path: Path) -> None:
        """The mark of a filtered list says nothing of the records that the filter left out."""
        every_record = numbered(9)
        api, source = Api(every_record[5:], counts=("total",)), replace(SOURCE, params={"kind": "a", "token": "1"})
        url = await serve(api)
        await synced(tmp_path, url, source)
        api.records = every_record
        part, found = await synced(tmp_path, url, replace(source, params={"kind": "b", "token": "1"}))
        assert (part.done, part.dropped, part.since, found) == (True, True, None, by_id(every_record))
        part, found = await synced(tmp_path, url, replace(source, params={"token": "2", "kind": "b", "empty": ""}))
        assert (part.done, part.dropped, found) == (True, False, by_id(every_record))
        assert part.since is not None, "a token does not select records"
        part, _ = await synced(tmp_path, url, replace(source, params=lambda _: {"kind": "c"}))
        assert (part.dropped, part.since) == (True, None)
        part, _ = await synced(tmp_path, url, replace(source, params=lambda _: {"kind": "d"}))
        assert not part.dropped, "of a function, only variant= can tell"

    @pytest.mark.sampled(1)
    @every_way
    async def test_a_server_may_cap_the_page_size(self, serve: Serve, tmp_path: Path, way: str) -> None:
        api = Api(numbered(35), cap=4, counts=("total",))
        source = replace(SOURCE, pages=replace(PAGINATIONS[way], page_size=10))
        part, found = await synced(tmp_path, await serve(api), source)
        assert (part.done, found) == (True, by_id(api.records))

    @pytest.mark.sampled(1)
    @every_way
    async def test_the_rest_of_an_interrupted_run_is_read(self, serve: Serve, tmp_path: Path, way: str) -> None:
        api, source = Api(numbered(35), counts=("total",)), replace(SOURCE, pages=PAGINATIONS[way])
        api.answer = lambda api, start, body: web.Response(status=400) if start == 20 else None
        url = await serve(api)
        part, _ = await synced(tmp_path, url, source, at_once=1)
        assert isinstance(part.error, BadRequest)
        assert not part.done
        api.answer = lambda *_: None
        api.queries.clear()
        part, found = await synced(tmp_path, url, source, resume=True)
        assert (part.done, found) == (True, by_id(api.records))
        assert len(api.queries) == (2 if way in CHAINS else 1)

    @pytest.mark.sampled(1)
    @every_way
    async def test_with_a_total_a_record_that_moves_up_is_not_lost(
        self, serve: Serve, tmp_path: Path, way: str
    ) -> None:
        api, source = Api(numbered(35), counts=("total",)), replace(SOURCE, pages=PAGINATIONS[way])

        def move(api: Api) -> None:
            if len(api.queries) == 1:
                api.records.append(api.records.pop(0))

        api.meanwhile = move
        part, found = await synced(tmp_path, await serve(api), source)
        assert (part.done, found) == (True, by_id(api.records))

    async def test_the_list_itself_may_be_the_answer(self, serve: Serve, tmp_path: Path) -> None:
        async def handle(request: web.Request) -> web.StreamResponse:
            return web.json_response([] if request.query["page"] != "1" else [{"a": {"b": 7}, "x": 1.50}])

        source = Source("items", records="", id=("none", "a.b"))
        url = await serve(handle)
        part, found = await synced(tmp_path, url, source)
        assert (part.done, part.records, found) == (True, 1, [{"a": {"b": 7}, "x": 1.5}])
        async with aiohttp.ClientSession(url) as session:
            assert [each async for each in lamella.records(session, source)] == found

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("status", [200, 400])
    async def test_a_false_page_count_is_not_believed_to_its_end(
        self, serve: Serve, tmp_path: Path, status: int
    ) -> None:
        api = Api(numbered(35))

        def count(api: Api, start: int, body: Record) -> web.Response:
            body["meta"]["pages"] = 50_000
            return web.json_response(body, status=200 if start < 35 else status)

        api.answer = count
        part, found = await synced(tmp_path, await serve(api), replace(SOURCE, pages=Numbered(page_size=10)))
        assert isinstance(part.error, BadRequest if status == 400 else sync.EmptyPage)
        assert (part.done, len(found)) == (False, 35)
        # Each page is asked for three times. How many are in flight at the end depends on the machine.
        assert len(api.queries) < 300

    async def test_page_numbers_may_begin_with_zero(self, serve: Serve) -> None:
        asked = []

        async def handle(request: web.Request) -> web.StreamResponse:
            asked.append(dict(request.query))
            return web.json_response({"data": [{"id": 1}] if request.query["p"] == "0" else []})

        source = Source("items", Numbered("p", 0, size=None), params={"kind": "a"})
        async with aiohttp.ClientSession(await serve(handle)) as session:
            assert [each async for each in lamella.records(session, source)] == [{"id": 1}]
        assert asked == [{"p": "0", "kind": "a"}, {"p": "1", "kind": "a"}]


@pytest.mark.usefixtures("virtual_time")  # a list is read again after a pause
class TestChains:
    @pytest.mark.sampled(1)
    @every_chain
    async def test_a_page_of_a_chain_may_be_empty(self, serve: Serve, tmp_path: Path, way: str) -> None:
        api, source = Api(numbered(35)), replace(SOURCE, pages=CHAINS[way])
        api.records = numbered(35)

        def skip(api: Api, start: int, body: Record) -> web.Response | None:
            if start != 10:
                return None
            links = {"Link": f'<{body["links"]["next"]}>; rel="next"'}
            return web.json_response(body | {"result": {"items": []}}, headers=links)

        api.answer = skip
        url = await serve(api)
        part, found = await synced(tmp_path, url, source)
        assert (part.done, len(found)) == (True, 25)
        async with aiohttp.ClientSession(url) as session:
            assert len([each async for each in lamella.records(session, source)]) == 25

    @pytest.mark.sampled(1)
    @every_chain
    @pytest.mark.parametrize("empty", [False, True])
    async def test_an_endless_chain_ends_with_an_error(
        self, serve: Serve, tmp_path: Path, way: str, empty: bool
    ) -> None:
        api, source = Api(numbered(35)), replace(SOURCE, pages=CHAINS[way])

        def again(api: Api, start: int, body: Record) -> web.Response | None:
            url = f"/api/items?limit=10&start={start + 10}"
            body |= {"next": str(start + 10), "links": {"next": url}}
            if start:
                body["result"]["items"] = [] if empty else api.records[:10]
            return web.json_response(body, headers={"Link": f'<{url}>; rel="next"'})

        api.answer = again
        url = await serve(api)
        part, _ = await synced(tmp_path, url, source)
        assert isinstance(part.error, sync.EmptyPage if empty else sync.RepeatedPage)
        assert not part.done
        assert len(api.queries) <= 3 * (2 + 21 * 2), "each empty page is read twice"
        async with aiohttp.ClientSession(url) as session:
            with pytest.raises(sync.IncompleteList):
                [each async for each in lamella.records(session, source)]

    @pytest.mark.parametrize("rel", ["next", "next last", "Prefetch NEXT"])
    async def test_a_link_may_have_several_relations(self, serve: Serve, tmp_path: Path, rel: str) -> None:
        """Without a total, nothing else would show that the list goes on."""
        api, source = Api(numbered(35)), replace(SOURCE, pages=LinkHeader(page_size=10))

        def link(api: Api, start: int, body: Record) -> web.Response:
            url = f"items?limit=10&start={start + 10}"
            links = {"Link": f'</>; rel="first", <{url}>; title="a; b"; rel="{rel}"'} if start < 30 else {}
            return web.json_response(body, headers=links)

        api.answer = link
        part, found = await synced(tmp_path, await serve(api), source)
        assert (part.done, len(found)) == (True, 35)

    @pytest.mark.parametrize("way", ["a cursor", "a URL in the body"])
    @pytest.mark.parametrize("token", [True, 1.5, {"href": "/api/items?start=10"}, ["10"]])
    async def test_an_unreadable_link_is_not_the_end_of_a_list(
        self, serve: Serve, tmp_path: Path, way: str, token: object
    ) -> None:
        api, source = Api(numbered(35)), replace(SOURCE, pages=CHAINS[way])
        api.answer = lambda api, start, body: web.json_response(body | {"next": token, "links": {"next": token}})
        url = await serve(api)
        part, _ = await synced(tmp_path, url, source)
        assert not part.done
        assert f"must be text{' or a whole number' if way == 'a cursor' else ''}, got " in str(part.error)
        async with aiohttp.ClientSession(url) as session:
            with pytest.raises(ValueError, match="must be text"):
                [each async for each in lamella.records(session, source)]

    @every_chain
    @pytest.mark.parametrize("token", [None, False, ""])
    async def test_an_empty_link_is_the_end_of_a_list(
        self, serve: Serve, tmp_path: Path, way: str, token: object
    ) -> None:
        api, source = Api(numbered(5)), replace(SOURCE, pages=CHAINS[way])
        api.answer = lambda api, start, body: web.json_response(body | {"next": token, "links": {"next": token}})
        part, found = await synced(tmp_path, await serve(api), source)
        assert (part.done, len(found)) == (True, 5)

    @every_chain
    @pytest.mark.parametrize("counts", [(), ("total",)])
    async def test_a_chain_that_returns_to_an_earlier_page_ends(
        self, serve: Serve, tmp_path: Path, way: str, counts: tuple[str, ...]
    ) -> None:
        """The first two pages in turn, for ever."""
        api, source = Api(numbered(35), counts=counts), replace(SOURCE, pages=CHAINS[way])

        def turn(api: Api, start: int, body: Record) -> web.Response | None:
            url = f"/api/items?limit=10&start={10 if start == 0 else 0}"
            token = url.rpartition("=")[2]
            body |= {"next": token, "links": {"next": url}}
            return web.json_response(body, headers={"Link": f'<{url}>; rel="next"'})

        api.answer = turn
        part, _ = await synced(tmp_path, await serve(api), source)
        assert isinstance(part.error, sync.RepeatedPage)
        assert len(api.queries) == 9

    @pytest.mark.parametrize("way", ["a Link header", "a URL in the body"])
    async def test_a_chain_to_another_server_is_not_followed(self, serve: Serve, tmp_path: Path, way: str) -> None:
        """It would get the credentials of the session."""
        asked = []

        async def other(request: web.Request) -> web.StreamResponse:
            asked.append(request.headers.get("Authorization"))
            return web.json_response({"result": {"items": []}})

        there = f"{await serve(other)}/items"

        async def handle(request: web.Request) -> web.StreamResponse:
            body = {"result": {"items": numbered(1)}, "links": {"next": there}}
            return web.json_response(body, headers={"Link": f'<{there}>; rel="next"'})

        url, source = await serve(handle), replace(SOURCE, pages=CHAINS[way])
        auth = HeaderAuth({"Authorization": "Bearer zq-token"}, origin=url)
        async with aiohttp.ClientSession(url, middlewares=stack(RULES, auth=auth)) as session:
            with pytest.raises(ValueError, match="the next page is at another origin: http://127"):
                [each async for each in lamella.records(session, source)]
        part, _ = await synced(tmp_path, url, source)
        assert "the next page is at another origin: http://127" in str(part.error)
        assert asked == []

    async def test_a_chain_stays_at_its_origin_after_a_redirect(self, serve: Serve) -> None:
        """Otherwise the pages after the redirected one would get the credentials of the session."""
        asked = []

        async def other(request: web.Request) -> web.StreamResponse:
            asked.append(request.headers.get("Authorization"))
            return web.json_response({"data": numbered(1), "next": "/more"})

        there = f"{await serve(other)}/items"

        async def handle(request: web.Request) -> web.StreamResponse:
            raise web.HTTPFound(there)

        headers = {"Authorization": "Bearer zq-token"}
        async with aiohttp.ClientSession(await serve(handle), middlewares=stack(RULES), headers=headers) as session:
            with pytest.raises(ValueError, match="the next page is at another origin: http://127"):
                [each async for each in lamella.records(session, Source("items", NextUrl()))]
        assert asked == [None]

    @pytest.mark.parametrize("way", [LinkHeader, NextUrl])
    @pytest.mark.parametrize(
        ("url", "problem"),
        [
            ("file:///etc/passwd?token=zq-token", "must have an http or https URL, got one with file"),
            ("javascript:alert(1)", "must have an http or https URL, got one with javascript"),
            ("http://[::1?token=zq-token", "is not a valid one"),
            ("http://127.0.0.1:999999/?token=zq-token", "is not a valid one"),
        ],
    )
    async def test_a_next_url_that_is_none_is_named(
        self, serve: Serve, way: type[LinkHeader | NextUrl], url: str, problem: str
    ) -> None:
        async def handle(request: web.Request) -> web.StreamResponse:
            return web.json_response({"data": [], "next": url}, headers={"Link": f'<{url}>; rel="next"'})

        async with aiohttp.ClientSession(await serve(handle), middlewares=stack(RULES)) as session:
            with pytest.raises(ValueError, match=problem) as raised:
                [each async for each in lamella.records(session, lamella.Source("rows", way()))]
        assert "zq-token" not in str(raised.value)


class TestAccounts:
    async def test_each_account_has_its_credentials_and_parameters(self, serve: Serve, tmp_path: Path) -> None:
        asked = set()

        async def handle(request: web.Request) -> web.StreamResponse:
            asked.add((request.headers["X-Key"], request.query["tenant"]))
            return web.json_response({"data": [{"id": request.query["tenant"]}], "total": 1})

        from contextvars import ContextVar

        key: ContextVar[str] = ContextVar("key")

        class within:  # noqa: N801 - it stands for a function
            def __init__(self, account: tuple[str, str]) -> None:
                self.account = account

            def __enter__(self) -> None:
                self.token = key.set(self.account[0])

            def __exit__(self, *_: object) -> None:
                key.reset(self.token)

        source = Source("items", total="total", params=lambda account: {"tenant": account[1]}, within=within)
        url = await serve(handle)
        auth = HeaderAuth({"X-Key": lambda request: key.get()}, origin=url)
        async with (
            aiohttp.ClientSession(url, middlewares=stack(RULES, auth=auth)) as session,
            Journal.open(tmp_path / "journal", batch="test") as journal,
        ):
            accounts = {"north": ("key-1", "n"), "south": ("key-2", "s")}
            report = await sync.run(session, {"items": source}, accounts, journal=journal)
        assert report.done
        assert asked == {("key-1", "n"), ("key-2", "s")}


class TestOtherSources:
    async def test_records_of_another_list_are_dropped(self, serve: Serve, tmp_path: Path) -> None:
        api = Api(numbered(3), counts=("total",))
        url = await serve(api)
        await synced(tmp_path, url, replace(SOURCE, pages=Numbered()))
        part, found = await synced(tmp_path, url, replace(SOURCE, pages=Numbered(), id="at"))
        assert (part.dropped, part.since, len(found)) == (True, None, 3)
        part, found = await synced(tmp_path, url, replace(SOURCE, pages=Numbered(page_size=2), id="at"))
        assert (part.dropped, part.since is None, len(found)) == (False, False, 3)

    async def test_without_msgspec_a_sync_says_what_to_install(
        self, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import sys

        api = Api(numbered(3))
        url = await serve(api)
        monkeypatch.setitem(sys.modules, "msgspec", None)
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'lamella\[sync\]'"):
            await synced(tmp_path, url, SOURCE)
        async with aiohttp.ClientSession(url) as session:
            assert [each async for each in lamella.records(session, SOURCE)] == api.records

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"url": ""}, "url must not be empty"),
            ({"url": "a", "id": ()}, "id must name at least one field"),
            ({"url": "a", "id": ("",)}, "id must name at least one field"),
        ],
    )
    def test_a_bad_source_is_rejected(self, arguments: Any, said: str) -> None:
        with pytest.raises(ValueError, match=said):
            Source(**arguments)

    async def test_bad_arguments_are_rejected(self) -> None:
        with pytest.raises(ValueError, match="page_size must be a whole number, 1 or more, got 0"):
            Cursor(page_size=0)
        async with aiohttp.ClientSession() as session:
            for arguments, said in (
                ({"first": 0}, "first must be at least 1"),
                ({"since": "2026-01-01"}, "has no parameter for since"),
            ):
                with pytest.raises(ValueError, match=said):
                    lamella.pages(session, Source("items"), **arguments)
            with pytest.raises(ValueError, match="1 if each page leads to the next"):
                lamella.pages(session, Source("items", Cursor()), first=2)
