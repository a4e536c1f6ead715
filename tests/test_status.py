"""The status page as its clients see it, in memory; its HTML is tested in test_status_page, and
in a browser in tests/browser."""

from __future__ import annotations

import json
import logging
import os
import re
import select
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import h11
import httpx
import pytest
import trio
from hypercorn.config import Config
from hypercorn.middleware import ProxyFixMiddleware
from hypercorn.middleware.dispatcher import TrioDispatcherMiddleware
from trio.testing import MockClock

from trio_httptrack import ConnState, tracked_server
from trio_httptrack._monitor.monitor import Monitor
from trio_httptrack._monitor.query import Query
from trio_httptrack._monitor.report import Report
from trio_httptrack.status import StatusApp
from trio_httptrack.testing import MemoryServer, memory_server

from .clients import Http2, http1
from .support import app as support_app

NEW, ACTIVE, IDLE, HIJACKED, CLOSED = ConnState
UPGRADE = (
    b" HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
LOOPBACK = ["127.0.0.0/8", "::1"]


class Mounted:
    """A status page beside an application, on a server."""

    def __init__(self, server: MemoryServer, client: httpx.AsyncClient) -> None:
        self.server = server
        self.client = client

    async def json(self, query: str = "") -> Any:
        response = await self.client.get(f"/status{query}", headers={"accept": "application/json"})
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        return response.json()


@asynccontextmanager
async def mounted(**settings: Any) -> AsyncIterator[Mounted]:
    status = StatusApp(allow=LOOPBACK)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        there = scope["type"] == "lifespan" or scope["path"] == "/status"
        await (status if there else support_app)(scope, receive, send)

    async with (
        memory_server(app, keep_alive_timeout=10_000, **settings) as server,
        httpx.AsyncClient(
            transport=server.httpx_transport(), base_url="http://localhost"
        ) as client,
    ):
        yield Mounted(server, client)


async def request(status: StatusApp, **scope: Any) -> tuple[int, dict[str, str], str]:
    """Call the application as a server would that is not tracked."""
    sent = []

    async def receive() -> Any:
        await trio.sleep_forever()

    async def send(event: Any) -> None:
        sent.append(event)

    whole = {
        "type": "http",
        "scheme": "http",
        "method": "GET",
        "path": "/",
        "query_string": b"",
        "headers": [],
        "client": ("127.0.0.1", 1),
        "extensions": {},
        **scope,
    }
    await status(whole, receive, send)
    start, body = sent
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], headers, body["body"].decode()


class Events:
    """A viewer of the events, on a connection of its own."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self._h11 = h11.Connection(h11.CLIENT)
        self._unread = b""

    async def begin(self, query: str = "") -> None:
        headers = [("host", "localhost"), ("accept", "text/event-stream")]
        requested = h11.Request(method="GET", target=f"/status{query}", headers=headers)
        sent = (self._h11.send(requested) or b"") + (self._h11.send(h11.EndOfMessage()) or b"")
        await self.stream.send_all(sent)
        response = await self._event()
        assert isinstance(response, h11.Response)
        assert (b"content-type", b"text/event-stream; charset=utf-8") in list(response.headers)

    async def next(self) -> dict[str, str] | None:
        """The next event's data; None at the end of the response."""
        while b"\n\n" not in self._unread:
            event = await self._event()
            if isinstance(event, h11.EndOfMessage):
                return None
            assert isinstance(event, h11.Data)
            self._unread += event.data
        event_, _, self._unread = self._unread.partition(b"\n\n")
        assert event_.startswith(b"data: ")
        parts: dict[str, str] = json.loads(event_[6:])
        return parts

    async def _event(self) -> Any:
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            self._h11.receive_data(await self.stream.receive_some())
        return event


# What is shown


async def test_it_shows_every_connection(autojump_clock: MockClock) -> None:
    """Without a tracker of its own: what is new, idle or upgraded, and the viewer's."""
    async with mounted() as page:
        silent = await page.server.connect()
        idle = await page.server.connect()
        await trio.sleep(1)
        await http1(idle, path="/somewhere?secret=1")
        upgraded = await page.server.connect()
        await upgraded.send_all(b"GET /chat" + UPGRADE)
        await upgraded.receive_some()
        await trio.sleep(2)
        seen = await page.json("?sort=id")
        assert seen["connections"] == {"new": 1, "active": 1, "idle": 1, "hijacked": 1}
        assert seen["websockets"] == 1
        assert {name: seen["totals"][name] for name in ("new", "active", "idle", "hijacked")} == {
            "new": 4,
            "active": 3,
            "idle": 1,
            "hijacked": 1,
        }
        assert (seen["totals"]["requests"], seen["totals"]["2xx"]) == (3, 1)
        assert seen["totals"]["1xx"] == 1  # the WebSocket's 101
        assert [row["id"] for row in seen["rows"][:3]] == [
            each.conn.id for each in (silent, idle, upgraded)
        ]
        assert [row["path"] for row in seen["rows"]] == [None, "/somewhere", "/chat", "/status"]
        assert seen["rows"][1] == {
            "worker": os.getpid(),
            "id": idle.conn.id,
            "client": f"127.0.0.1:{idle.conn.client[1]}",  # type: ignore[index]
            "protocol": "http/1.1",
            "tls": False,
            "state": "idle",
            "in_state": 2,
            "age": 3,
            "requests": 1,
            "path": "/somewhere",
            "received": None,
            "sent": None,
            "in_flight": [],
            "in_flight_count": 0,
        }
        (worker,) = seen["workers"]
        assert (worker["pid"], worker["uptime"], worker["connections"]) == (os.getpid(), 3, 4)
        assert (worker["draining"], worker["silent"]) == (False, None)


async def test_a_stuck_stream_is_found_behind_short_requests(autojump_clock: MockClock) -> None:
    """By its own path, age and number, over TLS and HTTP/2."""
    async with mounted() as page:
        client = Http2(await page.server.connect(tls=True, alpn=["h2"]))
        await client.start()
        stuck = client.request("/until-disconnect")
        await client.flush()
        await trio.sleep(30)
        await client.get("/one")
        await client.get("/two")
        row, viewer = (await page.json())["rows"]
        assert (row["tls"], row["protocol"], row["requests"]) == (True, "h2", 3)
        assert row["path"] == "/two"
        assert row["in_flight"] == [
            {
                "method": "GET",
                "path": "/until-disconnect",
                "age": 30,
                "stream": stuck,
                "phase": "waiting",
            }
        ]
        assert viewer["in_flight"][0]["path"] == "/status"


async def test_responses_are_counted_by_status_class(autojump_clock: MockClock) -> None:
    """Over HTTP/1.1 and HTTP/2; the server's own, too, such as those to what is no request."""
    async with mounted() as page:

        async def counted() -> dict[str, int]:
            totals = (await page.json())["totals"]
            return {name: totals[name] for name in ("requests", "2xx", "4xx", "5xx")}

        await page.json()
        assert await counted() == {"requests": 2, "2xx": 1, "4xx": 0, "5xx": 0}
        for path in ("/", "/nothing", "/stream"):
            await http1(await page.server.connect(), path=path)
        await http1(await page.server.connect(), path="/raise")
        broken = await page.server.connect()
        await broken.send_all(b"nothing that is HTTP\r\n\r\n")
        await broken.receive_some()
        assert await counted() == {"requests": 7, "2xx": 5, "4xx": 1, "5xx": 1}
        client = Http2(await page.server.connect())
        await client.start()
        await client.get("/")
        await client.get("/raise")
        assert await counted() == {"requests": 10, "2xx": 7, "4xx": 1, "5xx": 2}


async def test_the_query_chooses(autojump_clock: MockClock) -> None:
    """By state, client and path; in another order; grouped by client."""
    async with mounted() as page:
        for number in range(3):
            stream = await page.server.connect(client=(f"10.0.0.{number}", 1))
            await trio.sleep(1)
        await http1(stream, path="/shop/cart")
        for query, clients in (
            ("?state=new", ["10.0.0.0:1", "10.0.0.1:1"]),
            ("?client=10.0.0.1", ["10.0.0.1:1"]),
            ("?path=cart", ["10.0.0.2:1"]),
            ("?client=10.&sort=-id", ["10.0.0.2:1", "10.0.0.1:1", "10.0.0.0:1"]),
        ):
            seen = await page.json(query)
            assert [row["client"] for row in seen["rows"]] == clients, query
            assert seen["matching"] == len(clients)
            assert sum(seen["connections"].values()) == 4
        await page.server.connect(client=("10.0.0.1", 2))
        groups = (await page.json("?group=client&client=10."))["groups"]
        assert [(each["client"], each["connections"]) for each in groups] == [
            *(("10.0.0.1", 2), ("10.0.0.0", 1), ("10.0.0.2", 1)),
        ]
        response = await page.client.get("/status?sort=speed")
        assert response.status_code == 400
        assert response.text.startswith("sort must be one of stuck, ")


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="Linux's kernel counts them")
async def test_bytes_are_those_of_the_kernel(tmp_path: Path) -> None:
    """Received and sent, of a real connection; a Unix socket's are not known."""
    config = Config()
    config.bind = ["127.0.0.1:0", f"unix:{tmp_path}/sock"]
    async with tracked_server(StatusApp(allow=["127.0.0.1"]), config) as server:
        url = next(url for url in server.urls if url.startswith("http://"))
        headers = {"accept": "application/json"}
        async with httpx.AsyncClient(base_url=url) as client:
            for _ in range(2):
                sent = (await client.get("/", headers=headers)).json()["rows"][0]
        assert sent["received"] > 200
        assert sent["sent"] > 1000
        assert sent["received"] < sent["sent"]
        async with await trio.open_unix_socket(f"{tmp_path}/sock") as stream:
            await http1(stream)
            (conn,) = [conn for conn in server.connections() if conn.client is None]
            async with httpx.AsyncClient(base_url=url) as client:
                rows = (await client.get("/?sort=id", headers=headers)).json()["rows"]
        (row,) = [row for row in rows if row["id"] == conn.id]
        assert (row["received"], row["sent"], row["client"]) == (None, None, None)


async def test_the_page_of_an_untracked_server_is_a_503_with_the_reason() -> None:
    """It is the mistake that is made first."""
    status, _, body = await request(StatusApp(allow=LOOPBACK))
    assert status == 503
    assert "does its config have a conn_state" in body


# Updates


async def test_a_viewer_is_sent_what_changes_each_second(autojump_clock: MockClock) -> None:
    """As parts of the page, in the requested order."""
    async with mounted() as page:
        viewer = Events(await page.server.connect())
        await viewer.begin("?sort=id")
        first = await viewer.next()
        assert first is not None
        begun = trio.current_time()
        await page.server.connect(client=("10.1.2.3", 4711))
        second = await viewer.next()
        assert second is not None
        assert trio.current_time() == begun + 1
        assert first.keys() == second.keys()
        assert "10.1.2.3" not in str(first)
        assert "10.1.2.3" in str(second)


async def test_viewers_of_the_same_page_share_the_work(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty of them cost one look a second."""
    made: list[Query | None] = []
    make = Monitor._make_report

    async def counted(self: Monitor, query: Query | None) -> Report:
        made.append(query)
        return await make(self, query)

    monkeypatch.setattr(Monitor, "_make_report", counted)
    async with mounted() as page:
        viewers = [Events(await page.server.connect()) for _ in range(20)]
        for viewer in viewers:
            await viewer.begin()
        for _ in range(5):
            for viewer in viewers:
                assert await viewer.next() is not None
    assert len(made) in (5, 6)


@pytest.mark.parametrize("step", ["page", "as_text", "update"])
async def test_the_worker_rests_nine_times_as_long_as_a_report_takes(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Nine times as long as that took: so viewers have a tenth of its time."""

    def slow(*_: object) -> str:
        autojump_clock.jump(0.05)  # as long as this takes
        return "{}"

    monkeypatch.setattr(f"trio_httptrack.status._app.{step}", slow)
    accept = {"accept": "text/plain" if step == "as_text" else "text/html"}
    async with mounted() as page:
        for number in range(20):
            query = f"?path={number}"
            if step == "update":
                viewer = Events(await page.server.connect())
                await viewer.begin(query)
                await viewer.next()
                await viewer.stream.aclose()
            else:
                await page.client.get(f"/status{query}", headers=accept)
        assert trio.current_time() == pytest.approx(19 * 0.5 + 0.05)


async def test_the_first_update_is_not_older_than_the_page(autojump_clock: MockClock) -> None:
    """Though another viewer has had this second's already."""
    async with mounted() as page:
        viewer = Events(await page.server.connect())
        await viewer.begin()
        await viewer.next()
        await page.server.connect(client=("10.1.2.3", 4711))
        assert "10.1.2.3" in (await page.client.get("/status")).text
        other = Events(await page.server.connect())
        await other.begin()
        assert "10.1.2.3" in str(await other.next())


async def test_a_viewer_that_does_not_read_is_waited_for(autojump_clock: MockClock) -> None:
    """Nothing piles up for it; what it reads at last is not from long ago."""
    async with mounted() as page:
        viewer = Events(await page.server.connect())
        await viewer.begin()
        await trio.sleep(1000)
        number = 0
        while trio.current_time() == 1000:
            await viewer.next()
            number += 1
        assert number < 100  # and not a thousand


async def test_nothing_remains_of_a_viewer_that_disconnects(autojump_clock: MockClock) -> None:
    """Its handler ends with its connection, over HTTP/1.1 and HTTP/2."""
    async with mounted() as page:
        viewer = Events(await page.server.connect())
        await viewer.begin()
        await viewer.stream.aclose()
        await viewer.stream.conn.wait_closed()
        h2 = Http2(await page.server.connect())
        await h2.start()
        stream_id = h2.h2.get_next_available_stream_id()
        h2.h2.send_headers(
            stream_id,
            [
                (":method", "GET"),
                (":scheme", "http"),
                (":authority", "localhost"),
                (":path", "/status"),
                ("accept", "text/event-stream"),
            ],
            end_stream=True,
        )
        await h2.flush()
        while not h2.bodies:
            await h2.pump()
        h2.h2.reset_stream(stream_id)
        await h2.flush()
        await h2.get("/other")
        await trio.testing.wait_all_tasks_blocked()
        assert page.server.stats().idle == 1
        assert page.server.stats().active == 0


async def test_a_shutdown_ends_the_updates_at_once(autojump_clock: MockClock) -> None:
    """The response is complete, and the page's EventSource connects to the next worker."""
    async with mounted(graceful_timeout=100) as page:
        viewer = Events(await page.server.connect())
        await viewer.begin()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(page.server.shutdown)
            while await viewer.next() is not None:
                pass
        assert trio.current_time() < 2


# Who may look: by the token


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if "token=" in each.getMessage()]


@pytest.fixture
def server_log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level("INFO")
    return caplog


async def test_the_page_needs_its_token_and_nothing_else(autojump_clock: MockClock) -> None:
    """From wherever it is looked at; neither an address nor a header is a reason."""
    status = StatusApp()
    async with memory_server(status) as server:
        for client in (("127.0.0.1", 1), ("::1", 1), ("192.0.2.7", 1)):
            for token, expected in (
                (status.token, 200),
                ("", 403),
                (status.token[:-1], 403),
                (f"{status.token}0", 403),
                ("%ff", 403),
            ):
                stream = await server.connect(client=client)
                responded, body = await http1(
                    stream, path=f"/?token={token}", x_forwarded_for="127.0.0.1"
                )
                assert responded == expected
                assert status.token.encode() not in body or expected == 200
                stream = await server.connect(client=client)
                assert (await http1(stream))[0] == 403


async def test_the_token_is_logged_at_the_start(server_log: pytest.LogCaptureFixture) -> None:
    """If the page gets the lifespan's events."""
    status = StatusApp()
    config = Config()
    config.bind = "127.0.0.1:0"
    config.errorlog = logging.getLogger("server")
    async with tracked_server(status, config):
        assert logged(server_log) == [f"Status page: add ?token={status.token} to its address"]


async def test_the_token_is_logged_at_a_request_without_it(
    server_log: pytest.LogCaptureFixture,
) -> None:
    """Once, however the page is mounted, and for any address of the request."""
    status = StatusApp()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await status(scope, receive, send)

    config = Config()
    config.bind = "127.0.0.1:0"
    config.errorlog = logging.getLogger("server")
    async with tracked_server(app, config) as server, httpx.AsyncClient() as client:
        for host in ("localhost", "evil.example"):
            refused = await client.get(f"{server.urls[0]}/a%20b/status?x=1", headers={"host": host})
            assert refused.status_code == 403
            assert status.token not in refused.text
            assert "the server's log has it" in refused.text
        assert logged(server_log) == [f"Status page: add ?token={status.token} to its address"]
        url = f"{server.urls[0]}/a%20b/status?token={status.token}"
        assert (await client.get(url)).status_code == 200


SPAWNS = """
import multiprocessing
from trio_httptrack.status import StatusApp

def tell(queue):
    queue.put(StatusApp().token)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    for _ in range(2):
        worker = context.Process(target=tell, args=(queue,))
        worker.start()
        worker.join()
    print(StatusApp().token, queue.get(), queue.get())
"""


def test_a_servers_workers_have_the_same_token(tmp_path: Path) -> None:
    """One that starts later, too; those of another server have another."""
    program = tmp_path / "spawns.py"
    program.write_text(SPAWNS)
    servers = []
    for _ in range(2):
        ended = subprocess.run(
            [sys.executable, program], check=True, capture_output=True, text=True
        )
        servers.append(set(ended.stdout.split()))
    one, other = servers
    assert len(one) == len(other) == 1
    assert one.isdisjoint(other)
    assert len(one.pop()) == 32


# Who may look: by the peer


@pytest.mark.parametrize(
    ("address", "headers", "status"),
    [
        ("10.1.2.3", {}, 200),
        ("::ffff:10.1.2.3", {}, 200),
        ("2001:db8::7", {}, 200),
        ("10.2.2.3", {}, 403),
        ("2001:db8::8", {}, 403),
        ("127.0.0.1", {}, 403),
        ("192.0.2.7", {"x_forwarded_for": "10.1.2.3"}, 403),
        ("192.0.2.7", {"forwarded": "for=10.1.2.3"}, 403),
        ("192.0.2.7", {"x_real_ip": "10.1.2.3"}, 403),
    ],
)
async def test_allow_lists_the_networks_that_may_view_the_page(
    autojump_clock: MockClock, address: str, headers: Any, status: int
) -> None:
    """By the address of the socket alone; the loopback is not among them unless it is named."""
    page = StatusApp(allow=["10.1.0.0/16", "2001:db8::7"])
    async with memory_server(page) as server:
        client = await server.connect(client=(address, 4711))
        responded, body = await http1(client, path=f"/?token={page.token}", **headers)
        assert responded == status
        assert (b"You may not view this page from" in body) == (status == 403)


async def test_middleware_that_believes_headers_changes_nothing(autojump_clock: MockClock) -> None:
    """ProxyFixMiddleware puts the header's address into the scope; that of the socket counts."""
    status = StatusApp(allow=["127.0.0.1"])
    fixed: Any = ProxyFixMiddleware(status, mode="legacy", trusted_hops=1)
    async with memory_server(fixed) as server:
        client = await server.connect(client=("192.0.2.7", 4711))
        responded, _ = await http1(client, x_forwarded_for="127.0.0.1")
        assert responded == 403


def connect_as(user: int, path: Path) -> socket.socket:
    """Connect to a Unix socket as another user."""
    path.chmod(0o777)
    path.parent.chmod(0o777)
    client = socket.socket(socket.AF_UNIX)
    directory = os.open(path.parent, os.O_PATH)  # those above it are not open to others
    try:
        os.seteuid(user)
        client.connect(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.seteuid(0)
        os.close(directory)
    return client


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")
@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize(
    ("allow", "user", "status"),
    [
        (["unix"], 0, 200),
        (["unix"], 65534, 403),
        (["127.0.0.1"], 0, 403),
        (["0.0.0.0/0", "::/0"], 0, 403),
        (None, 0, 403),
    ],
)
async def test_on_a_unix_socket_the_kernel_identifies_the_viewer(
    tmp_path: Path, allow: list[str] | None, user: int, status: int
) -> None:
    """The server's own user and root may view the page, if ``unix`` is allowed; no others may."""
    config = Config()
    config.bind = f"unix:{tmp_path}/sock"
    async with tracked_server(StatusApp(allow=allow), config):
        client = connect_as(user, tmp_path / "sock")
        async with trio.SocketStream(trio.socket.from_stdlib_socket(client)) as stream:
            responded, _ = await http1(stream)
    assert responded == status


@pytest.mark.parametrize("client", [None, ("/run/peer.sock", 0), ["unix"], ""])
async def test_a_peer_without_an_address_is_in_no_network(client: Any) -> None:
    """A client of a Unix socket is most likely a proxy."""
    page = StatusApp(allow=["0.0.0.0/0", "::/0", "unix"])
    status, _, body = await request(page, client=client)
    assert status == 403
    assert "from an unknown address" in body


@pytest.mark.parametrize(
    ("allow", "error", "says"),
    [
        ("10.0.0.0/8", TypeError, r"write allow=\['10.0.0.0/8'\]"),
        ("unix", TypeError, r"write allow=\['unix'\]"),
        (["10.0.0.1/8"], ValueError, "allow: 10.0.0.1/8 has host bits set; write '10.1.2.0/24'"),
        (["localhost"], ValueError, "allow: 'localhost' does not appear to be"),
        (b"127.0.0.1", TypeError, "allow: networks are strings such as '10.1.2.0/24', not 49"),
    ],
)
def test_an_invalid_network_is_refused_at_once(
    allow: Any, error: type[Exception], says: str
) -> None:
    """With an example of what would be one."""
    with pytest.raises(error, match=says):
        StatusApp(allow=allow)


# How


async def test_it_can_only_be_read(autojump_clock: MockClock) -> None:
    """GET and HEAD, by HTTP."""
    async with mounted() as page:
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            response = await page.client.request(method, "/status")
            assert response.status_code == 405
            assert response.headers["allow"] == "GET, HEAD"
        for accept in ("text/html", "application/json", "text/event-stream", "text/plain"):
            response = await page.client.head("/status", headers={"accept": accept})
            assert response.status_code == 200
            assert response.text == ""
        client = await page.server.connect()
        await client.send_all(b"GET /status" + UPGRADE)
        assert (await client.receive_some()).startswith(b"HTTP/1.1 403")


@pytest.mark.parametrize("accept", ["text/html", "application/json", "text/plain"])
@pytest.mark.parametrize(
    ("method", "query", "status"),
    [("GET", "", 200), ("POST", "", 405), ("GET", "?page=x", 400), ("GET", "", 403)],
)
async def test_every_response_is_private_and_strict(
    autojump_clock: MockClock, accept: str, method: str, query: str, status: int
) -> None:
    """Kept nowhere, framed nowhere, and nothing in it runs or loads but its own script."""
    async with mounted() as page:
        client = await page.server.connect(client=("192.0.2.7" if status == 403 else "::1", 1))
        raw = f"{method} /status{query} HTTP/1.1\r\nhost: a\r\naccept: {accept}\r\n\r\n"
        await client.send_all(raw.encode())
        reader = h11.Connection(h11.CLIENT)
        reader.send(h11.Request(method=method, target="/", headers=[("host", "a")]))
        while (response := reader.next_event()) is h11.NEED_DATA:
            reader.receive_data(bytes(await client.receive_some()))
    assert isinstance(response, h11.Response)
    headers = {name.decode(): value.decode() for name, value in response.headers}
    assert response.status_code == status
    assert headers["cache-control"] == "no-store"
    assert headers["vary"] == "accept"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    policy = re.sub("'sha256-[^']{44}'", "HASH", headers["content-security-policy"])
    assert policy == (
        "default-src 'none'; style-src HASH; script-src HASH; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html"),
        ("*/*", "text/html"),
        ("application/json", "application/json"),
        ("application/json, text/plain, */*", "application/json"),
        ("Application/JSON;q=0.9", "application/json"),
        ("text/plain", "text/plain"),
        ("image/png", "text/html"),
        ("", "text/html"),
    ],
)
async def test_the_client_gets_the_first_media_type_of_its_accept_header(
    autojump_clock: MockClock, accept: str, kind: str
) -> None:
    """HTML if it names none that there is."""
    async with mounted() as page:
        response = await page.client.get("/status", headers={"accept": accept})
        assert response.headers["content-type"].partition(";")[0] == kind


async def test_it_can_be_mounted_by_hypercorns_dispatcher(autojump_clock: MockClock) -> None:
    """Below a path, whose slash does not matter."""
    app = TrioDispatcherMiddleware({"/status": StatusApp(allow=LOOPBACK), "": support_app})
    async with (
        memory_server(app, keep_alive_timeout=60) as server,
        httpx.AsyncClient(
            transport=server.httpx_transport(), base_url="http://localhost"
        ) as client,
    ):
        assert (await client.get("/elsewhere")).text == "/elsewhere"
        for path in ("/status", "/status/", "/status?sort=id"):
            response = await client.get(path, headers={"accept": "application/json"})
            assert response.json()["connections"]["active"] == 1


def test_it_lives_through_several_runs_of_trio() -> None:
    """As an application of a module does in tests: each clock begins at another time."""
    status = StatusApp(allow=LOOPBACK)

    async def run(connections: int) -> str:
        async with memory_server(status, keep_alive_timeout=1000) as server:
            for number in range(connections):
                await server.connect(client=("10.1.2.3", number + 1))
            await trio.sleep(20)
            viewer = Events(await server.connect())
            await viewer.begin()
            return str(await viewer.next())

    for connections in (1, 30):
        seen = trio.run(run, connections, clock=MockClock(autojump_threshold=0))
        assert f">:{connections}<" in seen  # its client's port
        assert f">:{connections + 1}<" not in seen
