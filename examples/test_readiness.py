import httpx
import pytest
import trio.testing
from readiness import app

from trio_httptrack.testing import memory_server


@pytest.mark.trio
async def test_a_keep_alive_connection_gets_503_when_the_drain_begins(autojump_clock):
    async with (
        memory_server(app) as server,
        httpx.AsyncClient(transport=server.httpx_transport()) as client,
        trio.open_nursery() as nursery,
    ):
        assert (await client.get("http://app/ready")).status_code == 200
        nursery.start_soon(server.shutdown)
        await trio.testing.wait_all_tasks_blocked()
        response = await client.get("http://app/ready")
        assert response.status_code == 503
        assert response.headers["connection"] == "close"


@pytest.mark.trio
async def test_a_stream_of_events_ends_when_the_drain_begins(autojump_clock):
    async with memory_server(app, graceful_timeout=60) as server:
        client = await server.connect()
        await client.send_all(b"GET /events HTTP/1.1\r\nHost: app\r\n\r\n")
        await trio.sleep(40)
        report = await server.shutdown()
        assert (report.finished, report.forced) == (1, 0)
        assert report.seconds < 1
        response = await client.receive_some()
        assert response.count(b"data: ") == 3
        assert response.endswith(b"retry: 100\n\n\r\n0\r\n\r\n")
