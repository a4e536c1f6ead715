"""What no client or handler may delay: shutdowns, cancellations and closed connections.

Each in memory under a mock clock, and again on real sockets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h2.settings
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_httptrack import ConnState

from .clients import http1, read_to_end
from .test_faults import Arena, arena, handshake, request


async def request_and_do_not_read(server: Arena, protocol: str, path: str) -> Any:
    """A client that requests more than any buffer holds, and reads none of it."""
    if protocol in ("h2", "h2c", "websocket over h2"):
        client = await server.connect_h2(tls=protocol != "h2c")
        client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1})
        client.h2.increment_flow_control_window(2**31 - 1 - 65535)
        if protocol == "websocket over h2":
            await client.websocket(path, accepted=path in ("/big", "/endless"))
        else:
            client.request(path)
            await client.flush()
        return client.stream
    stream = await (server.connect_tls() if protocol == "tls" else server.connect())
    await stream.send_all((handshake if protocol == "websocket" else request)(path))
    return stream


PROTOCOLS = ["http1", "tls", "h2", "h2c", "websocket", "websocket over h2"]


@pytest.mark.parametrize("path", ["/big", "/endless", "/never-returns"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_shutdown_ends_within_the_grace_period_whatever_clients_and_handlers_do(
    protocol: str, path: str, certificate: Path, clock: MockClock | None
) -> None:
    """Neither clients that do not read nor handlers that do not return hold it up."""
    async with arena(certificate, clock) as server:
        stream = await request_and_do_not_read(server, protocol, path)
        await server.reached.wait()
        await wait_all_tasks_blocked()
    (conn,) = server.recorder.conns
    assert conn.close_reason == "app_shutdown_timeout"
    await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_the_send_buffer_of_a_client_that_does_not_read_is_bounded(
    protocol: str, certificate: Path, clock: MockClock | None
) -> None:
    """However wide a client opens its windows, an endless response stops when it stops reading."""
    async with arena(certificate, clock) as server:
        stream = await request_and_do_not_read(server, protocol, "/endless")
        await server.reached.wait()
        await wait_all_tasks_blocked()
        assert server.written < 16_000_000  # the kernel's buffers, and little more
        await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_cancellation_closes_every_socket_at_once(
    protocol: str, certificate: Path, clock: MockClock | None
) -> None:
    """Also those that are being written to, and whose clients do not read."""
    with trio.fail_after(5), trio.CancelScope() as scope:
        async with arena(certificate, clock, graceful_timeout=60) as server:
            stream = await request_and_do_not_read(server, protocol, "/big")
            await server.reached.wait()
            await wait_all_tasks_blocked()
            scope.cancel()
            await trio.sleep_forever()
    assert server.recorder.conns[0].close_reason == "aborted_by_app"
    await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("path", ["/sys-exit", "/ctrl-c"])
async def test_ctrl_c_and_sys_exit_still_stop_the_server(
    path: str, certificate: Path, clock: MockClock | None
) -> None:
    """In a handler they travel out of the server, and no connection holds them up."""
    stuck: Any = None

    async def main() -> None:
        nonlocal stuck
        async with arena(certificate, clock, graceful_timeout=60) as server:
            stuck = await request_and_do_not_read(server, "http1", "/big")
            await stuck.send_eof()  # so that its reader, which would notice, has ended
            await server.reached.wait()
            await wait_all_tasks_blocked()
            await server.exchange(request(path))
            await trio.sleep_forever()

    with trio.fail_after(5), pytest.raises((SystemExit, KeyboardInterrupt), match="from a handler"):
        await main()
    await trio.aclose_forcefully(stuck)


async def test_a_request_for_an_unlisted_host_leaves_no_connection_behind(
    certificate: Path,
    clock: MockClock | None,
) -> None:
    """HTTP/1 closes after its 404, as announced. HTTP/2 stays idle until its deadline."""
    async with arena(
        certificate, clock, server_names=["elsewhere"], keep_alive_timeout=0.1
    ) as server:
        assert (await server.exchange(request())).startswith(b"HTTP/1.1 404 ")
        assert (await server.exchange(handshake())).startswith(b"HTTP/1.1 404 ")
        client = await server.connect_h2()
        assert (await client.get())[0] == "404"
        while await client.pump():
            pass
        await client.stream.aclose()
    assert [conn.close_reason for conn in server.recorder.conns] == [
        None,
        None,
        "keep_alive_timeout",
    ]
    assert server.recorder.sequences() == ["NAC", "NAC", "NAIAIC"]


@pytest.mark.parametrize("path", ["/deaf-until-gate", "websocket"])
async def test_one_http_2_stream_does_not_block_another(
    path: str, certificate: Path, clock: MockClock | None
) -> None:
    """A handler that does not read closes its own window. Other streams respond and upload."""
    async with arena(certificate, clock) as server:
        client = await server.connect_h2()
        if path == "websocket":
            deaf = await client.websocket("/deaf-until-gate")
            frame = b"\x82\x81" + b"\0" * 4 + b"x"
        else:
            deaf = client.request(path, "POST", end=False)
            frame = b"x" * 50
        while (window := client.h2.local_flow_control_window(deaf)) > 0:
            client.h2.send_data(deaf, frame[:window])
        await client.flush()
        for _ in range(3):
            assert await client.post("/echo", b"y" * 100_000) == ("200", b"y" * 100_000)
        assert client.h2.local_flow_control_window(deaf) < 2**14
        server.gate.set()
        await client.stream.aclose()


async def test_an_h2_upload_goes_on_when_its_handler_reads_again(
    certificate: Path, clock: MockClock | None
) -> None:
    """The window that its handler kept closed opens as it reads, to the last byte."""
    async with arena(certificate, clock) as server:
        client = await server.connect_h2()
        body = bytes(range(256)) * 2000
        server.gate.set()
        assert await client.post("/echo", body) == ("200", body)
        await client.stream.aclose()


async def test_every_connection_reports_exactly_one_terminal_state(
    certificate: Path, clock: MockClock | None
) -> None:
    """Whatever it was doing when the server, or its client, ended it."""
    clients: list[Any] = []
    paths = ["/", "/endless"]
    if clock is None:  # a mock clock stands still while a handler does not rest
        paths.append("/never-returns")
    async with arena(certificate, clock) as server:
        for protocol in PROTOCOLS:
            for path in paths:
                clients.append(await request_and_do_not_read(server, protocol, path))
                clients.append(await request_and_do_not_read(server, protocol, path))
        clients += [await server.connect(), await server.connect(tls=True)]
        await server.recorder.wait_for(ConnState.NEW, times=len(clients))
        await wait_all_tasks_blocked()
        for client in clients[::2]:
            await trio.aclose_forcefully(client)
    assert {sequence[-1] for sequence in server.recorder.sequences()} == {"C", "H"}
    for sequence in server.recorder.sequences():
        assert sum(map(sequence.count, "CH")) == 1
    for client in clients:
        await trio.aclose_forcefully(client)


@pytest.mark.parametrize("path", ["/always-sends", "/only-sends-nonsense"])
@pytest.mark.parametrize("protocol", ["http1", "h2", "websocket"])
async def test_every_send_and_every_receive_is_a_checkpoint(
    protocol: str, path: str, certificate: Path
) -> None:
    """An application that only sends, or only receives, before and after its peer's end.

    On real sockets only: a mock clock stands still while a handler does not rest.
    """
    async with arena(certificate) as server:
        stream = await request_and_do_not_read(server, protocol, path)
        await server.reached.wait()
        with trio.fail_after(5):
            assert await http1(await server.connected()) == (200, b"hello")
            await trio.aclose_forcefully(stream)
            if path == "/always-sends":  # else nothing is ever written that would not arrive
                await server.recorder.conns[0].wait_closed()
            assert await http1(await server.connected()) == (200, b"hello")


async def test_a_client_that_sends_too_much_still_gets_its_response(
    certificate: Path, clock: MockClock | None
) -> None:
    """What follows a client's last request is ignored, and does not cost it the response."""
    async with arena(certificate, clock) as server:
        for extra in (b"\r\n", b"garbage", request("/hold")):
            for requested in (b"GET / HTTP/1.0\r\n\r\n", request("/", "Connection: close")):
                response = await server.exchange(requested + extra)
                assert response.startswith(b"HTTP/1.1 200 ")
                assert response.endswith(b"hello")


@pytest.mark.parametrize("protocol", ["http1", "tls"])
async def test_a_cancelled_send_leaves_no_half_response(
    protocol: str, certificate: Path, clock: MockClock | None
) -> None:
    """What began to be written is written whole; the application's cancellation waits."""
    async with arena(certificate, clock) as server:
        stream = await request_and_do_not_read(server, protocol, "/gives-up")
        await server.reached.wait()
        response = bytearray()
        while len(response.partition(b"\r\n\r\n")[2]) < 20_000_000:
            chunk = await stream.receive_some()
            assert chunk
            response += chunk
        assert response.partition(b"\r\n\r\n")[2] == b"x" * 20_000_000
        await stream.aclose()


async def test_a_request_after_the_last_response_does_not_delay_the_close(
    certificate: Path,
    clock: MockClock | None,
) -> None:
    """The reader that waited for the first response ends with the connection."""
    async with arena(certificate, clock) as server:
        tasks = await server.tasks()
        stream = await server.connected()
        await stream.send_all(request("/says-close") + request())
        await server.recorder.wait_states("NA")
        await wait_all_tasks_blocked()
        server.gate.set()
        await read_to_end(stream)
        await stream.aclose()
        await server.recorder.wait_states("NAC")
        assert await server.tasks() == tasks


async def test_what_an_h2_handler_sent_before_it_failed_arrives_before_the_reset(
    certificate: Path,
    clock: MockClock | None,
) -> None:
    """However the tasks are scheduled."""
    async with arena(certificate, clock) as server:
        client = await server.connect_h2()
        for _ in range(30):
            stream_id = client.request("/raise-after-head")
            await client.flush()
            while stream_id not in client.reset:
                await client.pump()
            assert client.bodies[stream_id] == b"part"
        await client.stream.aclose()


async def test_a_cancellation_finds_a_waiting_reader_and_logs_nothing(
    certificate: Path, clock: MockClock | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The task that watches for disconnects runs as long as it may be needed."""
    with trio.CancelScope() as scope:
        async with arena(certificate, clock, errorlog="-") as server:
            stream = await server.connected()
            await stream.send_all(request("/never-returns") + request())
            await server.reached.wait()
            await wait_all_tasks_blocked()
            scope.cancel()
            await trio.sleep_forever()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_an_h2_websocket_handler_learns_that_its_client_sent_frames_too_early(
    certificate: Path,
    clock: MockClock | None,
) -> None:
    """Its stream gets a response, and the connection goes on."""
    async with arena(certificate, clock) as server:
        client = await server.connect_h2()
        stream_id = await client.websocket("/never-accepts", accepted=False)
        client.h2.send_data(stream_id, b"too early")
        await client.flush()
        assert await client.get() == ("200", b"hello")
        await wait_all_tasks_blocked()
        assert client.statuses[stream_id] == "400"
        assert server.seen == ["disconnect"]
        await client.stream.aclose()
