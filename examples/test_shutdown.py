import pytest
import trio

from trio_httptrack import ConnState
from trio_httptrack.testing import RecordingTracker, memory_server


async def slow_report(scope, receive, send):
    assert scope["type"] == "http"
    await trio.sleep(20)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"the report"})


@pytest.mark.trio
async def test_a_shutdown_waits_for_the_request_in_flight(autojump_clock):
    tracker = RecordingTracker()
    async with memory_server(slow_report, tracker=tracker, graceful_timeout=60) as server:
        client = await server.connect()
        await client.send_all(b"GET / HTTP/1.1\r\nHost: example\r\n\r\n")
        await tracker.wait_for(ConnState.ACTIVE)

        await server.shutdown()
        assert trio.current_time() == 20  # not 60: the request took 20
        assert b"the report" in await client.receive_some()
        assert await client.receive_some() == b""
    assert client.conn.close_reason is None, str(tracker)
