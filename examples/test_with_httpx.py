import httpx
import pytest
import trio

from trio_httptrack.testing import memory_server


async def slow_report(scope, receive, send):
    assert scope["type"] == "http"
    await trio.sleep(20)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"the report"})


@pytest.mark.trio
async def test_a_hundred_reports_take_no_longer_than_one(autojump_clock):
    async with (
        memory_server(slow_report) as server,
        httpx.AsyncClient(transport=server.httpx_transport(http2=True), timeout=None) as client,
        trio.open_nursery() as nursery,
    ):
        for _ in range(100):
            nursery.start_soon(client.get, "https://app/")
    assert trio.current_time() == 20
    assert server.stats().accepted_total == 1
