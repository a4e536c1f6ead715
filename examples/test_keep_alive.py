import pytest
import trio

from trio_httptrack import ConnState
from trio_httptrack.testing import RecordingTracker, memory_server


async def hello(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


@pytest.mark.trio
async def test_an_idle_connection_is_closed_after_five_minutes(autojump_clock):
    tracker = RecordingTracker()
    async with memory_server(hello, tracker=tracker, keep_alive_timeout=300) as server:
        client = await server.connect()
        await client.send_all(b"GET / HTTP/1.1\r\nHost: example\r\n\r\n")
        response = await client.receive_some()
        assert response.startswith(b"HTTP/1.1 204 ")

        assert await client.receive_some() == b""  # the server has closed
        assert trio.current_time() == 300
    assert tracker.states(client.conn) == [
        ConnState.NEW,
        ConnState.ACTIVE,
        ConnState.IDLE,
        ConnState.CLOSED,
    ], str(tracker)
    assert client.conn.close_reason == "keep_alive_timeout", str(tracker)
