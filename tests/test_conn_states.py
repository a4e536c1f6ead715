"""The sequences of states, scenario by scenario, as Go's net/http reports them.

Each row is what one client does on one connection. It runs on in-memory streams under
a mock clock, and again with the real worker on real sockets.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
import trio_websocket
from trio.testing import MockClock

from trio_httptrack.testing import memory_server

from .clients import Http2, http1
from .support import Recorder, app, socket_server

KEEP_ALIVE = 0.05
SEEDS = 25

Client = Callable[[Any, Recorder], Awaitable[None]]
ROWS: dict[str, tuple[str, Client]] = {}


def row(sequence: str) -> Callable[[Client], Client]:
    def add(client: Client) -> Client:
        ROWS[client.__name__] = (sequence, client)
        return client

    return add


async def tls_connect(server: Any, *alpn: str) -> Any:
    return await server.connect(tls=True, alpn=alpn)


async def http2_connect(server: Any) -> Http2:
    client = Http2(await tls_connect(server, "h2"))
    await client.start()
    return client


@row("NC")
async def connects_and_closes(server: Any, recorder: Recorder) -> None:
    stream = await server.connect()
    await stream.aclose()


@row("NC")
async def stays_silent_until_the_timeout(server: Any, recorder: Recorder) -> None:
    stream = await server.connect()
    assert await stream.receive_some() == b""


@row("NAIC")
async def one_get(server: Any, recorder: Recorder) -> None:
    stream = await server.connect()
    assert await http1(stream, path="/hello") == (200, b"/hello")
    await recorder.wait_states("NAI")
    await stream.aclose()


@row("NAIAIAIC")
async def three_gets_in_turn(server: Any, recorder: Recorder) -> None:
    stream = await server.connect()
    for path in ("/1", "/2", "/3"):
        assert await http1(stream, path=path) == (200, path.encode())
    await recorder.wait_states("NAIAIAI")
    await stream.aclose()


@row("NAC")
async def get_with_connection_close(server: Any, recorder: Recorder) -> None:
    stream = await server.connect()
    assert await http1(stream, Connection="close") == (200, b"/")
    assert await stream.receive_some() == b""


@row("NAIC")
async def silent_after_one_get(server: Any, recorder: Recorder) -> None:
    stream = await server.connect()
    assert await http1(stream) == (200, b"/")
    assert await stream.receive_some() == b""


@row("NC")
async def half_a_request_line(server: Any, recorder: Recorder) -> None:
    stream = await server.connect()
    await stream.send_all(b"GET /ha")
    await stream.aclose()


@row("NC")
async def bytes_that_are_not_http(server: Any, recorder: Recorder) -> None:
    stream = await server.connect()
    await stream.send_all(b"\x00\x01\x02\r\n\r\n")
    assert (await stream.receive_some()).startswith(b"HTTP/1.1 400 ")
    assert await stream.receive_some() == b""
    await stream.aclose()


@row("NAIC")
async def malformed_second_request(server: Any, recorder: Recorder) -> None:
    stream = await server.connect()
    assert await http1(stream) == (200, b"/")
    await recorder.wait_states("NAI")
    await stream.send_all(b"\x00\x01\x02\r\n\r\n")
    assert (await stream.receive_some()).startswith(b"HTTP/1.1 400 ")
    await stream.aclose()


@row("NAIC")
async def post_with_content_length(server: Any, recorder: Recorder) -> None:
    stream = await server.connect()
    response = await http1(stream, "POST", "/body", body=b"hello", Content_Length="5")
    assert response == (200, b"hello")
    await recorder.wait_states("NAI")
    await stream.aclose()


@row("NAIC")
async def post_chunked(server: Any, recorder: Recorder) -> None:
    stream = await server.connect()
    response = await http1(stream, "POST", "/body", body=b"hello", Transfer_Encoding="chunked")
    assert response == (200, b"hello")
    await recorder.wait_states("NAI")
    await stream.aclose()


@row("NAIC")
async def head(server: Any, recorder: Recorder) -> None:
    stream = await server.connect()
    assert await http1(stream, "HEAD") == (200, b"")
    await recorder.wait_states("NAI")
    await stream.aclose()


@row("NAIC")
async def get_answered_204(server: Any, recorder: Recorder) -> None:
    stream = await server.connect()
    assert await http1(stream, path="/nothing") == (204, b"")
    await recorder.wait_states("NAI")
    await stream.aclose()


@row("NAIC")
async def get_answered_by_a_stream(server: Any, recorder: Recorder) -> None:
    stream = await server.connect()
    assert await http1(stream, path="/stream") == (200, b"onetwothree")
    await recorder.wait_states("NAI")
    await stream.aclose()


@row("NAC")
async def handler_raises_before_responding(server: Any, recorder: Recorder) -> None:
    stream = await server.connect()
    assert await http1(stream, path="/raise") == (500, b"")
    assert await stream.receive_some() == b""


@row("NAC")
async def client_closes_while_the_handler_works(server: Any, recorder: Recorder) -> None:
    # Go goes on to IDLE here. The peer is gone, so this connection never rests.
    stream = await server.connect()
    await stream.send_all(b"GET /until-disconnect HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await recorder.wait_states("NA")
    await stream.aclose()


@row("NAH")
async def websocket_with_close_handshake(server: Any, recorder: Recorder) -> None:
    async with trio.open_nursery() as nursery:
        stream = await server.connect()
        client = await trio_websocket.wrap_client_stream(nursery, stream, "localhost", "/")
        await client.send_message("hello")
        assert await client.get_message() == "hello"
        await client.aclose()
    await recorder.conns[0].wait_closed()


@row("NAH")
async def websocket_dropped_by_the_client(server: Any, recorder: Recorder) -> None:
    async with trio.open_nursery() as nursery:
        stream = await server.connect()
        await trio_websocket.wrap_client_stream(nursery, stream, "localhost", "/")
        await stream.aclose()
    await recorder.conns[0].wait_closed()


@row("NAC")
async def websocket_refused(server: Any, recorder: Recorder) -> None:
    # Go keeps the connection alive. Hypercorn closes it after a refusal.
    stream = await server.connect()
    await stream.send_all(
        b"GET /refuse HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert (await stream.receive_some()).startswith(b"HTTP/1.1 403 ")
    while await stream.receive_some():
        pass


@row("NAIC")
async def tls_one_get(server: Any, recorder: Recorder) -> None:
    stream = await tls_connect(server, "http/1.1")
    assert await http1(stream) == (200, b"/")
    await recorder.wait_states("NAI")
    await stream.aclose()


@row("NC")
async def tls_closed_before_the_handshake(server: Any, recorder: Recorder) -> None:
    stream = await server.connect(tls=True, handshake=False)
    await stream.aclose()


@row("NC")
async def plain_http_to_the_tls_port(server: Any, recorder: Recorder) -> None:
    stream = await server.connect(tls=True, handshake=False)
    await stream.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    while await stream.receive_some():
        pass


@row("NAIC")
async def h2_preface_only(server: Any, recorder: Recorder) -> None:
    client = await http2_connect(server)
    await recorder.wait_states("NAI")
    await client.stream.aclose()


@row("NC")
async def h2_no_preface(server: Any, recorder: Recorder) -> None:
    stream = await tls_connect(server, "h2")
    await stream.aclose()


@row("NAIAIC")
async def h2_one_get(server: Any, recorder: Recorder) -> None:
    client = await http2_connect(server)
    assert await client.get("/hello") == ("200", b"/hello")
    await recorder.wait_states("NAIAI")
    await client.stream.aclose()


@row("NAIAIAIAIC")
async def h2_three_gets_in_turn(server: Any, recorder: Recorder) -> None:
    client = await http2_connect(server)
    for turn in range(3):
        assert await client.get() == ("200", b"/")
        await recorder.wait_states("NAI" + "AI" * (turn + 1))
    await client.stream.aclose()


@row("NAIAIC")
async def h2_three_gets_at_once(server: Any, recorder: Recorder) -> None:
    client = await http2_connect(server)
    for _ in range(3):
        client.request()
    await client.flush()
    while len(client.ended) < 3:
        await client.pump()
    await recorder.wait_states("NAIAI")
    await client.stream.aclose()


@row("NAIAIC")
async def h2_fifty_gets_at_once(server: Any, recorder: Recorder) -> None:
    client = await http2_connect(server)
    for _ in range(50):
        client.request()
    await client.flush()
    while len(client.ended) < 50:
        await client.pump()
    await recorder.wait_states("NAIAI")
    await client.stream.aclose()


@row("NAIC")
async def h2_silent_after_the_preface(server: Any, recorder: Recorder) -> None:
    client = await http2_connect(server)
    while await client.pump():
        pass


# What the table of net/http does not have.


@row("NAIC")
async def post_whose_body_is_not_read(server: Any, recorder: Recorder) -> None:
    stream = await server.connect()
    response = await http1(stream, "POST", body=b"hello", Content_Length="5")
    assert response == (200, b"/")
    await recorder.wait_states("NAI")
    await stream.aclose()


@row("NAIAIC")
async def two_pipelined_gets(server: Any, recorder: Recorder) -> None:
    stream = await server.connect()
    await stream.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2)
    await recorder.wait_states("NAIAI")
    await stream.aclose()


@row("NAIAIC")
async def h2c_by_prior_knowledge(server: Any, recorder: Recorder) -> None:
    client = Http2(await server.connect())
    await client.start()
    assert await client.get() == ("200", b"/")
    await recorder.wait_states("NAIAI")
    await client.stream.aclose()


@row("NAIC")
async def h2c_by_upgrade(server: Any, recorder: Recorder) -> None:
    client = Http2(await server.connect())
    settings = client.h2.initiate_upgrade_connection() or b""
    await client.stream.send_all(
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: " + settings + b"\r\n\r\n"
    )
    switched = b""
    while b"\r\n\r\n" not in switched:
        switched += await client.stream.receive_some()
    head, _, rest = switched.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    client.h2.receive_data(rest)
    await client.flush()
    while 1 not in client.ended:
        await client.pump()
    await recorder.wait_states("NAI")
    assert recorder.conns[0].protocol == "h2"
    await client.stream.aclose()


@row("NAC")
async def half_closes_and_reads_the_answer(server: Any, recorder: Recorder) -> None:
    stream = await server.connect()
    await stream.send_all(b"GET /until-disconnect HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await stream.send_eof()
    response = b""
    while data := await stream.receive_some():
        response += data
    assert response.endswith(b"\r\n\r\n/until-disconnect")


@row("NAC")
async def tls_ends_without_a_close_notify(server: Any, recorder: Recorder) -> None:
    # In TLS that is an end, and no half-close: nothing can be written any more.
    stream = await tls_connect(server, "http/1.1")
    await stream.send_all(b"GET /until-disconnect HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await recorder.wait_states("NA")
    await getattr(stream, "transport_stream", stream).send_eof()
    assert await stream.receive_some() == b""


TIMEOUTS = {
    "stays_silent_until_the_timeout",
    "silent_after_one_get",
    "h2_silent_after_the_preface",
}


def settings(name: str) -> dict[str, Any]:
    # A client of the other rows must never meet the timeout, however slow the machine.
    return {"keep_alive_timeout": KEEP_ALIVE if name in TIMEOUTS else 60}


async def run_in_memory(name: str) -> list[str]:
    """What is reported of one row's connection."""
    recorder = Recorder()
    async with memory_server(app, tracker=recorder, errorlog=None, **settings(name)) as server:
        await ROWS[name][1](server, recorder)
        await recorder.wait_terminal()
    return recorder.sequences()


@pytest.mark.parametrize("name", ROWS)
async def test_states_in_memory(name: str, autojump_clock: MockClock) -> None:
    """Each scenario reports its sequence, under a mock clock."""
    assert await run_in_memory(name) == [ROWS[name][0]]


@pytest.mark.parametrize("name", ROWS)
async def test_states_on_sockets(name: str, certificate: Path) -> None:
    """Each scenario reports its sequence, from the real worker on real sockets."""
    sequence, client = ROWS[name]
    recorder = Recorder()
    async with socket_server(
        app, certificate, tracker=recorder, errorlog=None, **settings(name)
    ) as server:
        with trio.fail_after(10):
            await client(server, recorder)
            await recorder.wait_terminal()
    assert recorder.sequences() == [sequence]


class InTurn(Random):
    """Trio's scheduler without its luck: tasks run in the order of their making."""

    def shuffle(self, batch: Any) -> None:
        batch.reverse()  # it takes them from the end


@pytest.mark.parametrize("name", ROWS)
def test_states_do_not_depend_on_the_schedulers_luck(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the tasks that could run Trio runs first, for each of many seeds."""
    scheduler = trio._core._run
    monkeypatch.setattr(scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    for luck in (InTurn(), *map(Random, range(SEEDS))):
        monkeypatch.setattr(scheduler, "_r", luck)
        clock = MockClock(autojump_threshold=0)
        assert trio.run(run_in_memory, name, clock=clock) == [ROWS[name][0]]
