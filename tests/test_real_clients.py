"""Client libraries that people use, against the real worker."""

from __future__ import annotations

from pathlib import Path

import httpx
import trio_websocket
from hypercorn.config import Config

from trio_httptrack import ConnState, Stats, tracked_server

from .support import Recorder, app, client_ssl


async def test_httpx_over_http1_keeps_one_connection_alive() -> None:
    """Two requests of one client are one connection that was active twice."""
    recorder = Recorder()
    async with tracked_server(app, tracker=recorder) as server:
        async with httpx.AsyncClient(base_url=server.urls[0]) as client:
            for path in ("/1", "/2"):
                assert (await client.get(path)).text == path
            await recorder.wait_states("NAIAI")
            assert server.stats() == Stats(idle=1, accepted_total=1, active_total=2, idle_total=2)
            (conn,) = server.connections()
            assert (conn.protocol, conn.tls, conn.state) == ("http/1.1", False, ConnState.IDLE)
        await recorder.wait_states("NAIAIC")
        assert server.connections() == {}


async def test_httpx_over_tls_speaks_http2(certificate: Path) -> None:
    """ALPN negotiates h2, and the connection has that protocol."""
    recorder = Recorder()
    config = Config.from_mapping(
        bind="127.0.0.1:0", certfile=str(certificate), keyfile=str(certificate)
    )
    async with tracked_server(app, config, tracker=recorder) as server:
        context = client_ssl("h2")
        async with httpx.AsyncClient(base_url=server.urls[0], http2=True, verify=context) as client:
            response = await client.post("/body", content=b"x" * 100_000)
            assert (response.http_version, response.content) == ("HTTP/2", b"x" * 100_000)
            await recorder.wait_states("NAIAI")
            (conn,) = server.connections()
            assert (conn.protocol, conn.tls) == ("h2", True)
        await recorder.wait_states("NAIAIC")


async def test_a_websocket_is_no_longer_waited_for_but_its_socket_is_known() -> None:
    """After HIJACKED the count is zero; wait_closed() still waits for the socket."""
    recorder = Recorder()
    async with tracked_server(app, tracker=recorder) as server:
        url = server.urls[0].replace("http", "ws")
        async with trio_websocket.open_websocket_url(url) as websocket:
            await websocket.send_message("hello")
            assert await websocket.get_message() == "hello"
            assert recorder.sequences() == ["NAH"]
            await server.conn_tracker.wait()
            assert server.stats().hijacked_total == 1
        await recorder.conns[0].wait_closed()
        assert recorder.sequences() == ["NAH"]
