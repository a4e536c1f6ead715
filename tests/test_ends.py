"""Ends that nobody may hold up: shutdowns, cancellations, and clients that do not read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import h2.settings
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from .test_faults import Arena, arena, handshake, request

if sys.version_info < (3, 11):
    pass


async def ask_and_do_not_read(server: Arena, protocol: str, path: str) -> Any:
    """A client that asks for more than any buffer takes, and reads none of it."""
    if protocol in ("h2", "h2c", "websocket over h2"):
        client = await server.connect_h2(tls=protocol != "h2c")
        client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1})
        client.h2.increment_flow_control_window(2**31 - 1 - 65535)
        if protocol == "websocket over h2":
            await client.websocket(path)
        else:
            client.request(path)
            await client.flush()
        return client.stream
    stream = await (server.connect_tls() if protocol == "tls" else server.connect())
    await stream.send_all((handshake if protocol == "websocket" else request)(path))
    return stream


PROTOCOLS = ["http1", "tls", "h2", "h2c", "websocket", "websocket over h2"]


@pytest.mark.parametrize("path", ["/big", "/endless"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_shutdown_does_not_wait_for_a_client_that_does_not_read(
    protocol: str, path: str, certificate: Path
) -> None:
    """At the end of graceful_timeout its transport is closed, under TLS too."""
    async with arena(certificate) as server:
        stream = await ask_and_do_not_read(server, protocol, path)
        await server.reached.wait()
        await wait_all_tasks_blocked()
    (conn,) = server.recorder.conns
    assert conn.close_reason == "app_shutdown_timeout"
    await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_writer_waits_for_a_client_that_does_not_read(
    protocol: str, certificate: Path
) -> None:
    """However wide a client opens its windows, an endless answer stops when it stops reading."""
    async with arena(certificate) as server:
        stream = await ask_and_do_not_read(server, protocol, "/endless")
        await server.reached.wait()
        await wait_all_tasks_blocked()
        assert server.written < 16_000_000  # the kernel's buffers, and little more
        await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_cancelling_a_server_does_not_wait_for_a_client_that_does_not_read(
    protocol: str, certificate: Path
) -> None:
    """A cancellation closes every socket at once, also those that are being written to."""
    with trio.fail_after(5), trio.CancelScope() as scope:
        async with arena(certificate, graceful_timeout=60) as server:
            stream = await ask_and_do_not_read(server, protocol, "/big")
            await server.reached.wait()
            await wait_all_tasks_blocked()
            scope.cancel()
            await trio.sleep_forever()
    assert server.recorder.conns[0].close_reason == "aborted_by_app"
    await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("protocol", ["http1", "tls", "h2", "h2c", "websocket"])
async def test_a_shutdown_does_not_wait_for_a_handler_that_never_returns(
    protocol: str, certificate: Path
) -> None:
    """A handler that ignores everything is cancelled at the end of graceful_timeout."""
    async with arena(certificate) as server:
        stream = await ask_and_do_not_read(server, protocol, "/never-returns")
        await server.reached.wait()
    assert server.recorder.conns[0].close_reason == "app_shutdown_timeout"
    await trio.aclose_forcefully(stream)


async def test_sys_exit_in_a_handler_ends_the_server_also_past_a_client_that_does_not_read(
    certificate: Path,
) -> None:
    """SystemExit travels out of the server, and no connection holds it up."""
    stuck: Any = None

    async def main() -> None:
        nonlocal stuck
        async with arena(certificate, graceful_timeout=60) as server:
            stuck = await ask_and_do_not_read(server, "http1", "/big")
            await server.reached.wait()
            await wait_all_tasks_blocked()
            await server.exchange(request("/sys-exit"))
            await trio.sleep_forever()

    with trio.fail_after(5), pytest.raises(SystemExit, match="from a handler"):
        await main()
    await trio.aclose_forcefully(stuck)


async def test_a_request_for_an_unlisted_host_leaves_no_connection_behind(
    certificate: Path,
) -> None:
    """HTTP/1 ends after its 404, as that says; HTTP/2 rests until its deadline."""
    async with arena(certificate, server_names=["elsewhere"], keep_alive_timeout=0.1) as server:
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
async def test_an_h2_stream_whose_handler_does_not_read_keeps_no_other_waiting(
    path: str, certificate: Path
) -> None:
    """Its own window closes, however small the frames; other streams answer, and upload."""
    async with arena(certificate) as server:
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


async def test_an_h2_upload_goes_on_when_its_handler_reads_again(certificate: Path) -> None:
    """The window that its handler kept closed opens as it reads, to the last byte."""
    async with arena(certificate) as server:
        client = await server.connect_h2()
        body = bytes(range(256)) * 2000
        server.gate.set()
        assert await client.post("/echo", body) == ("200", body)
        await client.stream.aclose()
