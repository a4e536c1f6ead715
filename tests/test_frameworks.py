"""What the pages of the frameworks say, on a real server in memory.

What each does when a client leaves is in ``test_disconnects``.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from importlib.util import find_spec
from inspect import signature
from typing import Any

import flask
import httpx
import pytest
import trio
from fastapi import BackgroundTasks, Depends, FastAPI
from hypercorn.utils import LifespanFailureError
from packaging.version import Version
from quart import Response as QuartResponse
from quart import request as quart_request
from quart import websocket as quart_websocket
from quart_trio import QuartTrio
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_httptrack import ConnState, tracked_server
from trio_httptrack.testing import ClientStream, MemoryServer, memory_server

from .clients import read_to_end
from .support import OLD_HYPERCORN

over_anyio = pytest.mark.skipif(
    "reason" not in signature(trio.CancelScope.cancel).parameters,
    reason="today's anyio, with which Starlette cancels, needs a newer Trio",
)
todays_fastapi = pytest.mark.skipif(
    find_spec("fastapi.sse") is None, reason="as the page says, an old FastAPI does less"
)
shielding = pytest.mark.skipif(
    Version(version("fastapi")) < Version("0.163"), reason="as the page says, since 0.163"
)

Log = pytest.LogCaptureFixture
WEBSOCKET = (
    b"GET /websocket HTTP/1.1\r\nHost: shop\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
HELLO = bytes([0x81, 0x85]) + bytes(4) + b"hello"
SERVICE_RESTART = bytes([0x88, 0x02]) + (1012).to_bytes(2, "big")


def get(path: str, *headers: str) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "Host: shop", *headers, "", ""]
    return "\r\n".join(lines).encode()


async def ask(server: MemoryServer, path: str) -> ClientStream:
    client = await server.connect()
    await client.send_all(get(path))
    return client


async def fetch(server: MemoryServer, path: str) -> httpx.Response:
    transport = server.httpx_transport()
    async with httpx.AsyncClient(transport=transport, timeout=None) as client:
        return await client.get(f"http://shop{path}")


class Notes(list[str]):
    """What happened, in its order, with its time."""

    def add(self, what: str) -> None:
        self.append(f"{what} {trio.current_time():g}")

    async def work(self, seconds: float = 10) -> None:
        try:
            await trio.sleep(seconds)
        except trio.Cancelled:
            self.add("cancelled")
            raise
        self.add("done")


async def fail() -> None:
    raise ValueError("the task's own error")


async def parts(number: int, seconds: float = 1) -> AsyncIterator[str]:
    for _ in range(number):
        yield "part"
        await trio.sleep(seconds)


# Quart-Trio


def quart(notes: Notes, shutdown_timeout: float = 100) -> Any:
    app = QuartTrio("quart")
    app.config["BACKGROUND_TASK_SHUTDOWN_TIMEOUT"] = shutdown_timeout
    jobs: set[trio.Event] = set()

    @app.while_serving
    async def serving() -> AsyncGenerator[None, None]:
        notes.add("startup")
        yield
        for over in list(jobs):
            await over.wait()
        notes.add("shutdown")

    @app.get("/hello")
    async def hello() -> str:
        return "hello"

    @app.get("/work")
    async def work() -> str:
        await notes.work(2)
        return "worked"

    @app.get("/background")
    async def background() -> str:
        app.add_background_task(notes.work)
        return "later"

    @app.get("/job")
    async def job() -> str:
        over = trio.Event()
        jobs.add(over)

        async def work() -> None:
            try:
                await notes.work()
            finally:
                over.set()

        app.add_background_task(work)
        return "later"

    @app.get("/background/fail")
    async def failing_background() -> str:
        app.add_background_task(fail)
        return "later"

    @app.get("/nursery/fail")
    async def failing_nursery() -> str:
        app.nursery.start_soon(fail)
        return "later"

    @app.get("/fail")
    async def failing() -> str:
        await fail()
        return "never"

    @app.get("/parts/<int:number>")
    async def stream(number: int) -> QuartResponse:
        return QuartResponse(parts(number))

    @app.get("/parts/forever")
    async def forever() -> QuartResponse:
        response = QuartResponse(parts(100))
        response.timeout = None
        return response

    @app.post("/upload")
    async def upload() -> str:
        return str(len(await quart_request.get_data()))

    @app.websocket("/websocket")
    async def websocket() -> None:
        try:
            while True:
                await quart_websocket.send(await quart_websocket.receive())
        except BaseException as error:  # Quart 0.23 raises a ClientDisconnectedError
            notes.add(type(error).__name__)
            raise

    return app


def starlette(notes: Notes) -> Any:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, object]]:
        notes.add("startup")
        async with trio.open_nursery() as jobs:
            yield {"jobs": jobs}
        notes.add("shutdown")

    async def work(request: Request) -> Response:
        await notes.work(2)
        return PlainTextResponse("worked")

    async def background(request: Request) -> Response:
        return PlainTextResponse("later", background=BackgroundTask(notes.work))

    async def job(request: Request) -> Response:
        request.state.jobs.start_soon(notes.work)
        return PlainTextResponse("later")

    async def hello(request: Request) -> Response:
        return PlainTextResponse("hello")

    async def failing_nursery(request: Request) -> Response:
        request.state.jobs.start_soon(fail)
        return PlainTextResponse("later")

    async def failing(request: Request) -> Response:
        await fail()
        raise AssertionError

    async def failing_background(request: Request) -> Response:
        return PlainTextResponse("later", background=BackgroundTask(fail))

    async def stream(request: Request) -> Response:
        return StreamingResponse(parts(request.path_params["number"]))

    async def for_asyncio(request: Request) -> Response:
        await asyncio.sleep(1)
        return PlainTextResponse("never")

    async def websocket(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            while True:
                await websocket.send_text(await websocket.receive_text())
        except WebSocketDisconnect as error:
            notes.add(f"disconnect {error.code}")

    return Starlette(
        lifespan=lifespan,
        routes=[
            Route("/work", work),
            Route("/background", background),
            Route("/job", job),
            Route("/hello", hello),
            Route("/nursery/fail", failing_nursery),
            Route("/fail", failing),
            Route("/background/fail", failing_background),
            Route("/parts/{number:int}", stream),
            Route("/asyncio", for_asyncio),
            WebSocketRoute("/websocket", websocket),
        ],
    )


BOTH = pytest.mark.parametrize("framework", [quart, starlette])


@BOTH
async def test_startup_comes_before_the_first_connection_and_shutdown_after_the_last(
    framework: Any, autojump_clock: MockClock
) -> None:
    """The request in flight is handled in between."""
    notes = Notes()
    async with memory_server(framework(notes)) as server:
        assert notes == ["startup 0"]
        client = await ask(server, "/work")
        await trio.sleep(1)
        await server.shutdown()
        assert b"worked" in await read_to_end(client)
    assert notes == ["startup 0", "done 2", "shutdown 2"]


@BOTH
async def test_a_job_of_the_lifespan_is_waited_for_at_the_shutdown(
    framework: Any, autojump_clock: MockClock
) -> None:
    """For longer than the grace period, as it is no request."""
    notes = Notes()
    async with memory_server(framework(notes), graceful_timeout=3) as server:
        await fetch(server, "/job")
    assert notes == ["startup 0", "done 10", "shutdown 10"]


async def test_a_background_task_of_quart_is_cancelled_after_the_shutdown(
    autojump_clock: MockClock,
) -> None:
    """At once, whatever Quart's BACKGROUND_TASK_SHUTDOWN_TIMEOUT is."""
    notes = Notes()
    async with memory_server(quart(notes), graceful_timeout=3) as server:
        await fetch(server, "/background")
    assert notes == ["startup 0", "shutdown 0", "cancelled 0"]


@pytest.mark.parametrize(("grace", "end"), [(3, "cancelled 3"), (30, "done 10")])
async def test_a_background_task_of_starlette_has_the_grace_period(
    grace: float, end: str, autojump_clock: MockClock
) -> None:
    """It is a part of its request."""
    notes = Notes()
    async with memory_server(starlette(notes), graceful_timeout=grace) as server:
        await fetch(server, "/background")
    assert notes == ["startup 0", end, f"shutdown {end.split()[1]}"]


async def test_a_background_task_of_starlette_does_not_keep_its_connection(
    autojump_clock: MockClock,
) -> None:
    """It is idle, and its next request is handled."""
    notes = Notes()
    async with memory_server(starlette(notes), graceful_timeout=30) as server:
        client = await ask(server, "/background")
        await wait_all_tasks_blocked()
        assert b"later" in await client.receive_some()
        assert client.conn.state is ConnState.IDLE
        await client.send_all(get("/work", "Connection: close"))
        assert b"worked" in await read_to_end(client)
        assert notes == ["startup 0", "done 2"]


@over_anyio
@BOTH
async def test_a_streamed_part_is_sent_at_once(framework: Any, autojump_clock: MockClock) -> None:
    """It does not wait for the next one."""
    async with memory_server(framework(Notes())) as server:
        client = await ask(server, "/parts/3")
        for second in range(3):
            assert b"part" in await client.receive_some()
            assert trio.current_time() == second


@pytest.mark.parametrize(("path", "seconds"), [("/parts/100", 60), ("/parts/forever", 100)])
async def test_quart_cuts_a_stream_after_a_minute(
    path: str, seconds: float, autojump_clock: MockClock
) -> None:
    """Its RESPONSE_TIMEOUT, unless the response has another timeout."""
    async with memory_server(quart(Notes())) as server:
        client = await ask(server, path)
        client_read = await read_until_over(client)
        assert trio.current_time() == seconds
        assert client_read.endswith(b"0\r\n\r\n") is (seconds == 100)


async def read_until_over(client: ClientStream) -> bytes:
    received = bytearray()
    while not received.endswith(b"0\r\n\r\n") and (data := await client.receive_some()):
        received += data
    return bytes(received)


@over_anyio
async def test_starlette_does_not_cut_a_stream(autojump_clock: MockClock) -> None:
    """Not after a minute, nor later."""
    async with memory_server(starlette(Notes())) as server:
        client = await ask(server, "/parts/1000")
        assert (await read_until_over(client)).endswith(b"0\r\n\r\n")
        assert trio.current_time() == 1000


async def test_quart_gives_a_body_a_minute(autojump_clock: MockClock) -> None:
    """Its BODY_TIMEOUT; the server itself has none by default."""
    async with memory_server(quart(Notes())) as server:
        client = await server.connect()
        await client.send_all(b"POST /upload HTTP/1.1\r\nHost: shop\r\nContent-Length: 9\r\n\r\nx")
        assert (await client.receive_some()).startswith(b"HTTP/1.1 408 ")
        assert trio.current_time() == 60


async def test_quart_refuses_a_body_of_more_than_16_mib(autojump_clock: MockClock) -> None:
    """Its MAX_CONTENT_LENGTH."""
    async with memory_server(quart(Notes())) as server:
        client = await server.connect()
        length = 16 * 2**20 + 1
        await client.send_all(
            b"POST /upload HTTP/1.1\r\nHost: shop\r\nContent-Length: %d\r\n\r\nx" % length
        )
        assert (await client.receive_some()).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("framework", "of_handler"),
    [
        (quart, {"Cancelled 1", "ClientDisconnectedError 1"}),
        (starlette, {"disconnect 1012 1"}),
    ],
    ids=["quart", "starlette"],
)
async def test_a_websocket_gets_a_close_frame_at_a_shutdown(
    framework: Any, of_handler: set[str], autojump_clock: MockClock
) -> None:
    """With 1012; Quart-Trio stops its handler, and Starlette's receives the code."""
    notes = Notes()
    async with memory_server(framework(notes)) as server:
        client = await server.connect()
        await client.send_all(WEBSOCKET)
        assert b" 101 " in await client.receive_some()
        await client.send_all(HELLO)
        assert await client.receive_some() == bytes([0x81, 5]) + b"hello"
        assert client.conn.state is ConnState.HIJACKED
        await trio.sleep(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.shutdown)
            assert await client.receive_some() == SERVICE_RESTART
            await client.send_all(bytes([0x88, 0x82]) + bytes(4) + SERVICE_RESTART[2:])
            assert await client.receive_some() == b""
    assert len(of_handler.intersection(notes)) == 1


@pytest.mark.parametrize(
    ("framework", "logger", "names"),
    [(quart, "quart", False), (starlette, "hypercorn.error", True)],
)
async def test_who_logs_an_error_of_a_handler(
    framework: Any, logger: str, names: bool, autojump_clock: MockClock, caplog: Log
) -> None:
    """Quart with its own logger, and the server, which names the connection, for Starlette."""
    async with memory_server(framework(Notes())) as server:
        assert (await fetch(server, "/fail")).status_code == 500
        (record,) = (each for each in caplog.records if each.levelname == "ERROR")
        assert record.name == logger
        assert ("conn 1 127.0.0.1" in record.getMessage()) is names


@BOTH
async def test_an_error_of_a_background_task_is_logged(
    framework: Any, autojump_clock: MockClock, caplog: Log
) -> None:
    """And stops nothing."""
    async with memory_server(framework(Notes())) as server:
        assert (await fetch(server, "/background/fail")).text == "later"
        await wait_all_tasks_blocked()
        assert "the task's own error" in caplog.text
        assert (await fetch(server, "/work")).text == "worked"


async def test_an_error_in_quarts_nursery_ends_its_lifespan() -> None:
    """The server goes on, but nothing is shut down, and background tasks are no longer started."""
    notes = Notes()
    async with tracked_server(quart(notes)) as server, httpx.AsyncClient() as client:

        async def status(path: str) -> int:
            return (await client.get(server.urls[0] + path)).status_code

        assert await status("/nursery/fail") == 200
        with trio.fail_after(20):
            while await status("/background") == 200:
                await trio.lowlevel.checkpoint()
        assert await status("/background") == 500
        assert await status("/hello") == 200
    assert not any(note.startswith("shutdown") for note in notes)


async def test_an_error_in_a_nursery_of_starlettes_lifespan_stops_the_server() -> None:
    """Starlette reports it as a failure of the shutdown, though there is none yet."""

    async def serve() -> None:
        async with tracked_server(starlette(Notes())) as server:
            async with httpx.AsyncClient() as client:
                await client.get(f"{server.urls[0]}/nursery/fail")
            await trio.sleep_forever()

    with trio.fail_after(20), pytest.raises(LifespanFailureError):
        await serve()


@pytest.mark.parametrize(("limit", "ends"), [(5, []), (20, ["shutdown 10"])])
async def test_quarts_shutdown_is_cancelled_after_a_timeout(
    limit: float, ends: list[str], autojump_clock: MockClock
) -> None:
    """Of BACKGROUND_TASK_SHUTDOWN_TIMEOUT, which has five seconds by default."""
    notes = Notes()
    app = quart(notes, limit)
    assert QuartTrio("other").config["BACKGROUND_TASK_SHUTDOWN_TIMEOUT"] == 5
    async with memory_server(app) as server:
        await fetch(server, "/job")
    assert notes[-1:] == (ends or ["cancelled 5"])
    assert trio.current_time() == min(limit, 10)


async def test_a_quart_with_while_serving_is_served_once(autojump_clock: MockClock) -> None:
    """In each process; so a test makes a new one."""
    app = quart(Notes())
    async with memory_server(app):
        pass
    with pytest.raises(Exception, match="startup"):
        async with memory_server(app):
            pass
    async with memory_server(quart(Notes())):
        pass


async def test_starlette_has_no_loop_for_asyncio(autojump_clock: MockClock, caplog: Log) -> None:
    """What needs one fails."""
    async with memory_server(starlette(Notes())) as server:
        assert (await fetch(server, "/asyncio")).status_code == 500
        assert "no running event loop" in caplog.text


async def test_a_mock_clock_jumps_while_a_thread_works(autojump_clock: MockClock) -> None:
    """It takes a thread for a task that waits."""
    jumped = threading.Event()

    def handler(request: Request) -> Response:
        assert jumped.wait(20)
        return PlainTextResponse("worked")

    app = Starlette(routes=[Route("/", handler)])
    async with memory_server(app) as server:
        client = await ask(server, "/")
        await trio.sleep(1000)
        jumped.set()
        assert b"worked" in await client.receive_some()


# FastAPI


def fast(notes: Notes) -> Any:
    app = FastAPI()

    async def resource() -> AsyncIterator[str]:
        try:
            yield "resource"
        finally:
            await trio.sleep(1)
            notes.add("cleaned up")

    def thread() -> str:
        return threading.current_thread().name

    @app.get("/threads")
    def threads(name: str = Depends(thread)) -> list[bool]:
        main = threading.main_thread().name
        return [name != main, threading.current_thread().name != main]

    @app.get("/work")
    async def work(_: str = Depends(resource)) -> str:
        await notes.work()
        return "worked"

    @app.get("/background")
    async def background(tasks: BackgroundTasks, _: str = Depends(resource)) -> str:
        tasks.add_task(notes.work, 2)
        return "later"

    return app


async def test_fastapi_calls_functions_without_async_in_threads() -> None:
    """A path operation, and a dependency."""
    async with memory_server(fast(Notes())) as server:
        assert (await fetch(server, "/threads")).json() == [True, True]


@shielding
async def test_fastapi_cleans_up_after_a_cancelled_handler(autojump_clock: MockClock) -> None:
    """The cleanup of a dependency may wait."""
    notes = Notes()
    async with memory_server(fast(notes), cancel_on_disconnect=0) as server:
        client = await ask(server, "/work")
        await trio.sleep(1)
        client.reset()
        await trio.sleep(10)
    assert notes == ["cancelled 1", "cleaned up 2"]


@shielding
async def test_fastapis_cleanup_comes_after_the_grace_period(autojump_clock: MockClock) -> None:
    """So a shutdown by force takes as long as it does."""
    notes = Notes()
    async with memory_server(fast(notes), graceful_timeout=3) as server:
        await ask(server, "/work")
        await wait_all_tasks_blocked()
        await server.shutdown()
        assert notes == ["cancelled 3", "cleaned up 4"]
        assert trio.current_time() == 4


@todays_fastapi
async def test_a_dependency_of_fastapi_is_open_until_its_background_task_is_done(
    autojump_clock: MockClock,
) -> None:
    """Though the response has been sent long before."""
    notes = Notes()
    async with memory_server(fast(notes), graceful_timeout=30) as server:
        assert (await fetch(server, "/background")).json() == "later"
        assert notes == []
    assert notes == ["done 2", "cleaned up 3"]


@over_anyio
@todays_fastapi
async def test_fastapi_pings_who_waits_for_an_event(autojump_clock: MockClock) -> None:
    """Every fifteen seconds, and its iterator is cancelled when the client leaves."""
    from fastapi.sse import EventSourceResponse

    app, notes = FastAPI(), Notes()

    @app.get("/", response_class=EventSourceResponse)
    async def events() -> AsyncIterator[int]:
        await notes.work(40)
        yield 1
        await notes.work(40)

    async with memory_server(app) as server:
        client = await ask(server, "/")
        for event, second in (b": ping", 15), (b": ping", 30), (b"data: 1", 40):
            while event not in await client.receive_some():
                pass
            assert trio.current_time() == second
        client.reset()
        await client.conn.wait_closed()
        await wait_all_tasks_blocked()
        assert notes == ["done 40", "cancelled 40"]


# WSGI


class Shop:
    """A Flask application, and what it waits for."""

    def __init__(self) -> None:
        self.begun, self.go_on = trio.Event(), threading.Event()
        self.ended = trio.Event()
        self.environ: dict[str, Any] = {}
        app = self.app = flask.Flask("shop")

        @app.get("/wait")
        def wait() -> str:
            self.environ = flask.request.environ
            trio.from_thread.run_sync(self.begun.set)
            assert self.go_on.wait(20)
            trio.from_thread.run_sync(self.ended.set)
            return "waited"

        @app.get("/parts")
        def stream() -> flask.Response:
            def parts() -> Iterator[str]:
                yield "first"
                assert self.go_on.wait(20)
                yield "second"

            return flask.Response(parts())

        @app.post("/upload")
        def upload() -> str:
            return "read"


threaded = pytest.mark.skipif(OLD_HYPERCORN, reason="as the page says, 0.17 has bugs in WSGI")


@threaded
@pytest.mark.parametrize("how", ["client", "shutdown"])
async def test_a_thread_of_wsgi_is_not_cancelled(how: str) -> None:
    """Not with the setting, and a shutdown waits for it, beyond the grace period."""
    shop, over = Shop(), trio.Event()

    async def shut_down() -> None:
        await server.shutdown()
        over.set()

    async with memory_server(shop.app, cancel_on_disconnect=0, graceful_timeout=0) as server:
        client = await ask(server, "/wait")
        await shop.begun.wait()
        assert not [name for name in shop.environ if "httptrack" in name or "scope" in name]
        async with trio.open_nursery() as nursery:
            if how == "client":
                client.reset()
            else:
                nursery.start_soon(shut_down)
            await wait_all_tasks_blocked(0.01)
            assert client.conn.exchanges
            assert not over.is_set()
            shop.go_on.set()
            await shop.ended.wait()


@threaded
async def test_a_part_of_a_wsgi_response_is_sent_at_once() -> None:
    """It does not wait for the next one."""
    shop = Shop()
    async with memory_server(shop.app) as server:
        client = await ask(server, "/parts")
        assert b"first" in await client.receive_some()
        shop.go_on.set()
        assert b"second" in await client.receive_some()


@threaded
async def test_wsgi_refuses_a_body_of_more_than_16_mib() -> None:
    """By Hypercorn's wsgi_max_body_size, with 400."""
    async with memory_server(Shop().app) as server:
        transport = server.httpx_transport()
        async with httpx.AsyncClient(transport=transport, timeout=None) as client:
            for length, status in (2**24, 200), (2**24 + 1, 400):
                response = await client.post("http://shop/upload", content=bytes(length))
                assert response.status_code == status


@threaded
async def test_wsgi_refuses_a_websocket(autojump_clock: MockClock) -> None:
    """With 403."""
    async with memory_server(Shop().app) as server:
        client = await server.connect()
        await client.send_all(WEBSOCKET)
        assert (await client.receive_some()).startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize("framework", ["Starlette", pytest.param("Flask", marks=threaded)])
async def test_forty_handlers_run_in_threads(framework: str) -> None:
    """By the limits of anyio and of Trio; another one waits until a thread is free."""
    most = running = 0
    full, enough = trio.Event(), trio.Event()

    async def enter() -> None:
        nonlocal most, running
        running += 1
        most = max(most, running)
        if running == 40:
            full.set()
        await enough.wait()
        running -= 1

    def handler(*_: Request) -> Any:
        trio.from_thread.run(enter)
        return PlainTextResponse("hello") if framework == "Starlette" else "hello"

    app: Any
    if framework == "Starlette":
        app = Starlette(routes=[Route("/", handler)])
    else:
        app = flask.Flask("shop")
        app.get("/")(handler)
    async with memory_server(app) as server:
        clients = [await ask(server, "/") for _ in range(50)]
        await full.wait()
        await wait_all_tasks_blocked()
        enough.set()
        for client in clients:
            assert b" 200 " in await client.receive_some()
        assert most == 40
