"""HTTP/3 by a proxy before a tracked server, as docs/howto/http3.md has it."""

from __future__ import annotations

import re
import shlex
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import trio
from curl_cffi import CurlHttpVersion
from hypercorn.config import Config

from trio_httptrack import StatsTracker, tracked_server
from trio_httptrack._hypercorn.settings import settings_of

from ..clients import http1
from ..hypercorn_process import (
    SECONDS,
    HypercornProcess,
    connect,
    failing_hypercorn,
    hypercorn,
    read_all,
)
from ..support import app
from .caddy import PAGE, Caddy, caddy, caddyfile, environ, on_page, replaced
from .http3_load import Http3Client, Reloaded, reload_under_load

TEXT = PAGE.read_text()
RUN, REQUEST, RELOAD = (block.text for block in on_page("sh"))
REFUSAL, PRINTED = (block.text for block in on_page("output"))
PORT = re.compile(r"(?<=:)\d{4,5}")
GOAWAY = "http2: Transport: cannot retry err [http2: Transport received Server's graceful shutdown"


async def shell(command: str, proxy: Caddy) -> str:
    """What a command prints, in the folder where the page's files are."""
    with trio.fail_after(SECONDS):
        process = await trio.run_process(
            ["bash", "-c", command],
            cwd=proxy.folder,
            env=environ(proxy.folder),
            capture_stdout=True,
        )
    return process.stdout.decode()


def without_ports(text: str) -> list[str]:
    return PORT.sub("PORT", text).splitlines()


@asynccontextmanager
async def site(folder: Path) -> AsyncIterator[tuple[HypercornProcess, Caddy]]:
    """The page's server and proxy, started by the page's commands, in a folder with its files."""
    for block in on_page("python"):
        assert block.file is not None
        (folder / block.file).write_text(block.text)
    (command,) = re.findall(r"^hypercorn (.+)$", TEXT, re.MULTILINE)
    arguments = [
        re.sub(r"hypercorn[._]\w+(\.py)?$", lambda file: str(folder / file[0]), argument)
        for argument in shlex.split(command)
    ]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(folder))
        async with (
            hypercorn(*arguments) as server,
            caddy(folder, caddyfile(), server.url, command=RUN.strip()) as proxy,
        ):
            client = folder / "http3_client.py"
            client.write_text(proxy.here(client.read_text()))
            yield server, proxy


async def test_the_page_does_what_it_says(tmp_path: Path) -> None:
    """Its files and its commands, before and after a reload."""
    reload, request_again = RELOAD.splitlines()
    async with site(tmp_path) as (server, proxy), await connect(server.url) as idle:
        assert without_ports(await shell(REQUEST, proxy)) == without_ports(PRINTED)
        await http1(idle)
        await shell(reload, proxy)
        assert await read_all(idle) == b""  # so the old worker accepts no more
        assert without_ports(await shell(request_again, proxy)) == without_ports(PRINTED)
    assert proxy.errors == []
    assert server.returncode == 0
    assert server.stderr.count("Running on") == 2


async def test_a_client_cannot_forge_its_address(tmp_path: Path) -> None:
    """Caddy replaces one of the headers that a client may send, and the other is not used."""
    async with site(tmp_path) as (_, proxy):
        with closing(Http3Client(proxy)) as client:
            response = await client.request(
                "GET", "/", X_Forwarded_For="203.0.113.7", Forwarded="for=203.0.113.7"
            )
    assert response.http_version == CurlHttpVersion.V3
    assert response.text.startswith("127.0.0.1 by https, ")


async def test_the_page_says_why_a_server_with_quic_bind_does_not_start() -> None:
    """In one line."""
    arguments = ("-k", "trio", "-c", "python:trio_httptrack.config", "--quic-bind", "127.0.0.1:0")
    _, stderr = await failing_hypercorn(*arguments, "ways_in.unaware:app")
    assert stderr == f"trio_httptrack: {REFUSAL}"


def test_the_proxy_closes_idle_connections_before_the_server_does() -> None:
    """In a drain and at any other time, with the settings as they are by default."""
    (milliseconds,) = re.findall(r"keepalive (\d+)ms", caddyfile())
    seconds = int(milliseconds) / 1000
    settings = settings_of(Config())
    assert seconds < settings.drain_idle_timeout
    assert seconds < settings.keep_alive_timeout


def no_worker_failed(reloaded: Reloaded) -> bool:
    """And no connection had to be closed by force."""
    stderr = reloaded.server.stderr
    forced = re.findall(r"Shut down: .+ and (\d+) by force", stderr)
    return reloaded.server.returncode == 0 and set(forced) == {"0"} and "Traceback" not in stderr


@pytest.mark.parametrize("late", [False, True], ids=["busy", "late"])
async def test_a_reload_behind_http1_loses_no_request(late: bool, tmp_path: Path) -> None:
    """Neither do ten, and each POST is handled once."""
    reloaded = await reload_under_load(tmp_path, caddyfile(), reloads=10, late=late)
    load = reloaded.load
    assert not load.lost, (load.lost, reloaded.errors)
    assert load.succeeded.keys() == {"GET", "POST"}
    assert len(load.seconds) == 10
    assert reloaded.handled == dict.fromkeys(load.succeeded_posts, 1)
    assert reloaded.versions == {"1.1"}
    assert reloaded.errors == []
    assert no_worker_failed(reloaded)


async def test_a_reload_behind_h2c_loses_no_get(tmp_path: Path) -> None:
    """A POST that crosses a GOAWAY may be lost, but is not handled; each other is handled once."""
    reloaded = await reload_under_load(tmp_path, caddyfile(upstream="h2c"), reloads=10)
    load = reloaded.load
    assert load.lost.total() == len(load.lost_posts), (load.lost, reloaded.errors)
    assert reloaded.handled == dict.fromkeys(load.succeeded_posts, 1)
    assert reloaded.versions == {"2"}
    assert all(error.startswith(GOAWAY) for error in reloaded.errors)
    assert no_worker_failed(reloaded)


@pytest.mark.parametrize("upstream", ["", "h2c"])
async def test_a_request_waits_for_a_server_that_restarts(upstream: str, tmp_path: Path) -> None:
    """Caddy tries again when a connection is refused, for a POST, too."""
    text = replaced(caddyfile(upstream=upstream), "\tadmin off\n", "\tadmin off\n\tdebug\n")
    responses: list[tuple[int, bytes]] = []
    responded = trio.Event()

    async def post(proxy: Caddy) -> None:
        with closing(Http3Client(proxy)) as client:
            response = await client.request("POST", "/body", b"a body")
        responses.append((response.status_code, response.content))
        responded.set()

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # and does not listen yet
        url = "http://{}:{}".format(*sock.getsockname())
        async with caddy(tmp_path, text, url) as proxy, trio.open_nursery() as nursery:
            nursery.start_soon(post, proxy)
            await proxy.wait_logged("connect: connection refused")
            assert responses == []
            config = Config.from_mapping(bind=f"fd://{sock.detach()}")
            async with tracked_server(app, config, tracker=StatsTracker()):
                await responded.wait()
    assert responses == [(200, b"a body")]


async def test_without_trying_again_the_request_gets_a_502(tmp_path: Path) -> None:
    """So the setting is what it takes."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = "http://{}:{}".format(*sock.getsockname())
        text = caddyfile(lb_try_duration=False)
        async with caddy(tmp_path, text, url) as proxy:
            with closing(Http3Client(proxy)) as client:
                response = await client.request("POST", "/body", b"a body")
    assert response.status_code == 502
