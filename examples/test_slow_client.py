import pytest
import trio

from trio_httptrack import ConnState
from trio_httptrack.testing import RecordingTracker, memory_server


async def hello(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


@pytest.mark.trio
async def test_a_client_that_never_finishes_its_request_is_stuck_in_new(autojump_clock):
    tracker = RecordingTracker()
    async with memory_server(hello, tracker=tracker, keep_alive_timeout=30) as server:
        client = await server.connect(client=("192.0.2.7", 4711))
        for byte in b"GET / HTTP/1.1\r\n":
            await client.send_all(bytes([byte]))
            await trio.sleep(1)
        assert client.conn.state is ConnState.NEW

        assert await client.receive_some() == b""  # its 30 seconds are over
        assert trio.current_time() == 30
    assert tracker.states(client.conn) == [ConnState.NEW, ConnState.CLOSED], str(tracker)
    assert client.conn.close_reason == "request_headers_timeout", str(tracker)
