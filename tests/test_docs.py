"""The docs say what is so: their code runs, their options are those of the code, and their links lead somewhere."""

from __future__ import annotations

import ast
import asyncio
import decimal
import inspect
import json
import os
import random
import re
import subprocess
import sys
import tomllib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from itertools import dropwhile, takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints
from unittest.mock import AsyncMock, Mock, patch

import aiohttp
import pytest
from aiohttp import web
from tests.environment import HANGS
from tests.servers import Serve
from typer.main import get_command

import lamella
from lamella import stacking
from lamella.batch import Batch, Journal
from lamella.cli.app import app
from lamella.pytest_maesn import MakeSandbox
from lamella.stacking import StackOptions
from lamella.testing import Fault, VirtualClock

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SOURCE = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Source"]
LAYERS = {path.stem: path for path in sorted((DOCS / "reference" / "layers").glob("*.md"))}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted(DOCS.rglob("*.md"))]

Step = int | Fault | Callable[[web.Request], Awaitable[web.Response]]


async def echo(request: web.Request) -> web.Response:
    headers = {"X-Request-Id": "r-7", "X-Cache": "miss"}
    sent = {"key": request.headers.get("X-API-Key"), "authorization": request.headers.get("Authorization")}
    return web.json_response(sent, headers=headers)


async def nothing(_: web.Request) -> web.Response:
    return web.Response()


async def issue(_: web.Request) -> web.Response:
    return web.json_response({"access_token": "made-up-token", "token_type": "bearer", "expires_in": 3600})


async def slow(_: web.Request) -> web.Response:
    await asyncio.sleep(100)
    return web.Response()


async def moved(request: web.Request) -> web.Response:
    elsewhere = request.url.with_host("localhost").with_path("/orders/7")
    return web.Response(status=302, headers={"Location": str(elsewhere)})


async def three(_: web.Request) -> web.Response:
    found = [{"id": at, "name": name, "changed_at": "2026-01-01"} for at, name in enumerate(("Ada", "Bob", "Eve"))]
    return web.json_response({"contacts": found, "paging": {"next": None, "total": 3}})


ANSWERS: dict[str, list[Step]] = {
    "../README.md": [503, 200, 500],
    "how-to/authentication.md": [echo, echo, echo, echo, issue, echo],
    "reference/layers/attempt-span.md": [503, echo],
    "reference/layers/breaker.md": [500] * 20,
    "reference/layers/buffer.md": [Fault.CUT_BODY],
    "reference/layers/classify.md": [404, 404],
    "reference/layers/header-auth.md": [echo, moved, echo, echo],
    "reference/layers/request-span.md": [503],
    "reference/layers/retry.md": [503, 503, 200, 503, 503, 503],
    "reference/layers/timeout.md": [slow],
    "how-to/sync-any-api.md": [three, three],
    "how-to/any-api.md": [503, 200, 404, 200, echo],
    "how-to/fastapi.md": [200, 404, 403],
    "how-to/traces.md": [503, 200],
    "how-to/from-aiohttp-retry.md": [503, 200],
    "index.md": [503, 200],
    "reference/errors.md": [503, 200],
    "explanation/guarantees.md": [500, 500, 200, 500, 200],
}
"""What api.example.com answers to the code of a page, in turn; then always 200."""
ELSEWHERE = {
    "tutorial.md": "test_the_tutorial_gives_the_stated_results",
    "how-to/testing.md": "test_the_tests_on_the_page_about_testing_pass",
    "how-to/dask.md": "tests/dask/test_page.py",
    "how-to/batch.md": "test_the_code_about_maesn_runs_against_the_sandbox",
    "how-to/maesn.md": "test_the_code_about_maesn_runs_against_the_sandbox",
    "how-to/sync.md": "test_the_code_about_maesn_runs_against_the_sandbox",
}
"""The pages whose code needs more than a server: each with the test that runs it."""
RUN = [
    *sorted(
        name
        for path in DOCS.rglob("*.md")
        if "```python" in path.read_text("utf-8") and (name := path.relative_to(DOCS).as_posix()) not in ELSEWHERE
    ),
    "../CONTRIBUTING.md",
    "../README.md",
]
LONG = {"how-to/fastapi.md", "how-to/fleet.md", "reference/errors.md", "reference/telemetry.md"}
"""The pages whose code takes half a second or more."""
PAGE_IMPORTS = {"Batch": Batch, "aiohttp": aiohttp, "decimal": decimal, "json": json, "maesn": lamella.maesn}
"""What later blocks of a page take from its first one."""
PUBLIC = [
    "lamella",
    *(f"lamella.{name}" for name in ("batch", "maesn", "maesn.sandbox", "oauth", "sync", "testing")),
]
ALSO_IN_SYNC = {("lamella", name) for name in ("Source", "pages", "records")}
BACKEND = "http://localhost:6006"
"""The trace backend of the pages."""


def code_of(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each block of Python of *page*, with the lines that it says it prints.

    They are in comments behind each print(), or in a text block that follows. "…" stands for anything.
    """
    for code, text in re.findall(
        r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", page.read_text("utf-8"), re.DOTALL | re.MULTILINE
    ):
        yield code, text.splitlines() or re.findall(r"^\s*print\(.*\)  # (.*)$", code, re.MULTILINE)


def matches(printed: list[str], said: list[str]) -> bool:
    patterns = [".*".join(map(re.escape, line.split("…"))) for line in said]
    return len(printed) == len(said) and all(map(re.fullmatch, patterns, printed))


async def run(code: str, names: dict[str, Any]) -> None:
    """Run *code* as `python -m asyncio` does, and close the sessions that it leaves open."""
    running = eval(compile(code, "<docs>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)  # noqa: S307 - our own
    if inspect.isawaitable(running):
        await running
    for value in names.values():
        if isinstance(value, aiohttp.ClientSession):
            await value.close()


def is_program(code: str) -> bool:
    """Return whether *code* has a loop of its own, or changes what is global."""
    return "asyncio.run(" in code or "set_tracer_provider(" in code


async def run_program(code: str) -> list[str]:
    """Run *code* in a process of its own, and return the lines that it prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"OTEL_SDK_DISABLED": "true"},
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode().splitlines()


@pytest.mark.sampled(len(RUN))
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in RUN])
async def test_the_code_on_each_page_gives_the_stated_result(
    name: str,
    serve: Serve,
    virtual_time: VirtualClock,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # for the files that it writes
    steps = iter(ANSWERS.get(name, []))

    async def handler(request: web.Request) -> web.StreamResponse:
        step = next(steps, 200)
        if isinstance(step, Fault):
            return await step.answer(request, web.json_response({"id": 7}))
        return web.json_response({"id": 7}, status=step) if isinstance(step, int) else await step(request)

    url, backend = await serve(handler), await serve(nothing)
    names: dict[str, Any] = {}
    for code, said in code_of(DOCS / name):
        here = code.replace("https://api.example.com", url).replace(BACKEND, backend)
        if is_program(code):
            printed = await run_program(here)
        else:
            await run(here, names)
            printed = capsys.readouterr().out.splitlines()
        assert matches(printed, said), f"\n{code}\nprinted {printed}\ninstead of {said}"
    assert next(steps, None) is None, "there are answers left that the code does not ask for"


async def test_the_tutorial_gives_the_stated_results(make_sandbox: MakeSandbox, serve: Serve) -> None:
    """Against a sandbox that neither refuses nor fails, so that nothing waits.

    One process runs the three programs: each import of aiohttp and OpenTelemetry takes half a second.
    """
    sandbox, backend = await make_sandbox(), await serve(nothing)
    blocks = list(code_of(DOCS / "tutorial.md"))
    assert len(blocks) == 3
    programs = [code.replace("http://localhost:8080", sandbox.url).replace(BACKEND, backend) for code, _ in blocks]
    in_turn = f"for program in {programs!r}:\n    exec(program, {{'__name__': '__main__'}})\n    print('-- end --')"
    printed = iter(await run_program(in_turn))
    for code, said in blocks:
        lines = list(takewhile("-- end --".__ne__, printed))
        assert matches(lines, said), f"{code}\nprinted {lines}"
    assert not list(printed)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "how-to/maesn.md" else ())
        for name, test in ELSEWHERE.items()
        if "sandbox" in test
    ],
)
async def test_the_code_about_maesn_runs_against_the_sandbox(
    name: str, make_sandbox: MakeSandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sandbox = await make_sandbox()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAESN_BASE_URL", sandbox.url)
    monkeypatch.setenv("MAESN_API_KEY", sandbox.api_key)
    monkeypatch.setenv("MAESN_ACCOUNT_KEY", sandbox.account_key)
    number = 0
    for number, (code, _) in enumerate(code_of(DOCS / name), 1):  # noqa: B007
        here = code.replace('api_key="…"', f'api_key="{sandbox.api_key}"')
        here = here.replace('account_key="…"', f'account_key="{sandbox.account_key}"')
        here = here.replace('account("…")', f'account("{sandbox.account_key}")')
        async with lamella.maesn.session() as session, Journal.open("given.journal", batch="docs") as journal:
            given = {
                "session": session,
                "journal": journal,
                "key": sandbox.account_key,
                "items": [SimpleNamespace(number=1, account=sandbox.account_key, resource="invoices", page=1)],
                "invoices": [SimpleNamespace(number="7", fields={"invoiceNumber": "7"})],
                "line": '{"total": 100.10}',
            }
            await run(here, PAGE_IMPORTS | given)
    assert number
    assert sandbox.received


def test_the_readme_is_short_and_works_on_pypi() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 120
    relative = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith("https://")]
    assert relative == []


def test_the_defaults_in_the_readme_are_those_of_the_layers() -> None:
    retry, budget = options_of(lamella.Retry), inspect.signature(lamella.RetryBudget).parameters
    said = {cells[0].strip("`"): cells[1] for cells in rows(ROOT / "README.md", "Defaults")}
    assert said.pop("retry_budget") == f"ratio {budget['ratio'].default:g}, capacity {budget['capacity'].default:g}"
    assert {name: default_of(value) for name, value in said.items()} == {
        "attempts": retry["attempts"],
        "deadline": retry["deadline"],
        "attempt_timeout": stacking._DEFAULTS["attempt_timeout"],
        "retry_writes": retry["retry_writes"],
        "throttle": True,
        "raise_errors": True,
        "buffer": options_of(lamella.Buffer)["limit"],
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_imports_in_the_code_of_the_docs_exist(page: Path) -> None:
    """Also where the code is a part of a program, and cannot run."""
    for code, _ in code_of(page):
        for node in ast.walk(compile(code, page.name, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lamella"):
                module = import_module(node.module or "")
                found = [hasattr(module, each.name) or find_spec(f"{node.module}.{each.name}") for each in node.names]
                assert all(found), ast.unparse(node)


@pytest.mark.slow
def test_the_tests_on_the_page_about_testing_pass(tmp_path: Path) -> None:
    """Those with a mock library run where it is installed: none of them is needed for anything else."""
    for number, (code, _) in enumerate(code_of(DOCS / "how-to" / "testing.md")):
        if all(map(find_spec, re.findall(r"^(?:from|import) (\w+)", code, re.MULTILINE))):
            (tmp_path / f"test_{number}.py").write_text(code, "utf-8")
    assert len(list(tmp_path.iterdir())) >= 5
    done = subprocess.run(  # noqa: S603
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            "-o",
            "asyncio_mode=auto",
            "--rootdir",
            ".",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


async def test_a_mocked_session_request_bypasses_the_layers() -> None:
    answer = Mock(status=503)
    with patch.object(aiohttp.ClientSession, "_request", AsyncMock(return_value=answer)):
        async with aiohttp.ClientSession(middlewares=lamella.stack()) as session:
            assert await session.get("https://api.example.com") is answer


def rows(page: Path, title: str) -> list[list[str]]:
    """Return the cells of the first table under the heading *title*."""
    section = page.read_text("utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]
    from_table = dropwhile(lambda line: not line.startswith("|"), section.splitlines())
    lines = takewhile(lambda line: line.startswith("|"), from_table)
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines][2:]


def default_of(cell: str) -> object:
    """Return the value that *cell* of a table of options names."""
    if cell == "required":
        return inspect.Parameter.empty
    if size := re.fullmatch(r"(\d+) MiB", cell):
        return int(size[1]) * 1024 * 1024
    return eval(cell.strip("`"), {"random": random})  # noqa: S307 - code of our own


def options_of(layer: type[lamella.Layer]) -> dict[str, object]:
    """Return the options of the constructor of *layer*, with their defaults."""
    options: dict[str, object] = {}
    for each in inspect.signature(layer).parameters.values():
        if each.kind is each.VAR_KEYWORD:
            # Unpack[a TypedDict], of which None means that they are not given.
            [several] = get_args(get_type_hints(vars(layer)["__init__"])[each.name])
            options |= dict.fromkeys(several.__annotations__)
        else:
            options[each.name] = dict(each.default) if isinstance(each.default, Mapping) else each.default
    return options


@pytest.mark.parametrize("name", LAYERS)
def test_the_options_of_a_layer_are_those_of_its_constructor(name: str) -> None:
    said = [(cells[0].strip("`"), default_of(cells[1])) for cells in rows(LAYERS[name], "Options")]
    options = options_of(getattr(lamella, name.title().replace("-", "")))
    assert dict(said) == options
    assert len(said) == len(options)


@pytest.mark.parametrize("name", LAYERS)
def test_the_options_of_a_stack_on_the_page_of_a_layer_exist(name: str) -> None:
    for _, _, in_stack, *_ in rows(LAYERS[name], "Options"):
        for option in re.findall(r"`(\w+)=?`", in_stack):
            assert option in StackOptions.__annotations__


def test_each_layer_has_a_page_with_the_same_parts() -> None:
    layers = {
        name
        for name in lamella.__all__
        if inspect.isclass(value := getattr(lamella, name))
        and issubclass(value, lamella.Layer)
        and value is not lamella.Layer
    }
    assert layers == {name.title().replace("-", "") for name in LAYERS}
    for page in LAYERS.values():
        parts = re.findall(r"^## (.*)$", page.read_text("utf-8"), re.MULTILINE)
        assert parts == ["Options", "What happens on failure", "Do and don't"], page.name


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_link_has_a_target(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        path, _, anchor = link.partition("#")
        if here := re.fullmatch(rf"{SOURCE}/(?:blob|tree|raw)/main/(.+)", path):
            target = ROOT / here[1]
        elif path.startswith(("http://", "https://")):
            continue
        else:
            target = page if not path else page.parent / path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_index_has_each_page() -> None:
    linked = {
        (DOCS / link).resolve() for link in re.findall(r"\]\(([^)#\s]+\.md)", (DOCS / "index.md").read_text("utf-8"))
    }
    assert linked >= set(DOCS.rglob("*.md")) - {DOCS / "index.md"}


def test_the_api_reference_has_each_public_name_once() -> None:
    pages = [path.read_text("utf-8") for path in sorted((DOCS / "reference" / "api").glob("*.md"))]
    listed = [name for page in pages for name in re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE)]
    public = {
        f"{module}.{name}"
        for module in PUBLIC
        for name in import_module(module).__all__
        if f"{module}.{name}" not in PUBLIC and (module, name) not in ALSO_IN_SYNC
    }
    assert set(listed) == public
    assert len(listed) == len(public)


def test_the_page_of_the_command_line_has_each_option() -> None:
    page = DOCS / "reference" / "cli.md"
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        if name == "dataset":  # it has commands of its own
            listed = {cells[0].strip("`") for cells in rows(page, "lamella dataset")}
            assert listed == set(command.commands)
            continue
        listed = {re.split(r"[` ]", cells[0].strip("`"))[0] for cells in rows(page, f"lamella {name}")}
        given = {max(option.opts, key=len) for option in command.params if not getattr(option, "hidden", False)}
        assert listed == given - {"--help"}, name


def test_the_tests_named_by_the_guarantees_exist() -> None:
    page = (DOCS / "explanation" / "guarantees.md").read_text("utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)`", page)
    assert len(named) >= 10
    assert [name for name in named if not (ROOT / name).is_file()] == []
