"""Bad input, much of it, against the real worker: ``python -m tests.fuzz``.

Each connection is made from ``random.Random(f"{seed} {index}")`` and nothing else: its bytes,
their chunks, how it ends. So ``--seed S --only I`` does one of them again, and shows it. Its
client has an address of its own, made from the index, by which the server's log and the
tracker know it again.

While they run, good clients must get correct responses in time, and the event loop must not be
blocked. Afterwards nothing may be left of them. The log may only have the application's own
errors: a client must not be able to fill an operator's log with tracebacks.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import re
import sys
import tempfile
import time
import traceback
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from ipaddress import ip_address
from itertools import count, takewhile
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import trio
import wsproto
from hypercorn.config import Config
from trio.testing import wait_all_tasks_blocked

from trio_httptrack import Conn, ConnState, tracked_server
from trio_httptrack._connection.connection import Connection
from trio_httptrack._states import TRANSITIONS

from .clients import Http2, http1
from .fuzz_input import TLS, Plan, make_plan
from .support import CERT, reset, respond
from .test_faults import GRACE, handshake, open_files

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

try:
    import fcntl
    import termios
except ModuleNotFoundError:
    SEES_UNSENT = False
else:
    SEES_UNSENT = True

CLIENTS = 20  # at once
IN_TIME = 5  # seconds for whatever should happen soon, on a busy machine
STALL = 1  # seconds for one round of the event loop
ENOUGH = 300_000  # bytes that a client reads of an endless response
FIRST_ADDRESS = int(ip_address("127.1.0.0"))
LOST = (trio.BrokenResourceError, trio.ClosedResourceError)
OWN = "the application's own error"

# With an even seed: handlers end with their clients, what is slow is cut off, and a tracker acts.
DEADLINES = {
    "cancel_on_disconnect": 0,
    "request_timeout": 2,
    "min_request_body_rate": 10_000,
    "min_response_rate": 10_000,
    "min_rate_grace_period": 0.2,
    "websocket_ping_timeout": 0.5,
}

say = partial(print, flush=True)


# The application


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Do what the path says."""
    if scope["type"] == "lifespan":
        while True:
            await send({"type": (await receive())["type"] + ".complete"})
    elif scope["type"] == "http":
        await http(scope, receive, send)
    else:
        await websocket(scope["path"], receive, send)


async def http(scope: Any, receive: Any, send: Any) -> None:
    path = scope["path"]
    if path == "/raise":
        raise ValueError(OWN)
    if path == "/return":
        return
    if path == "/disconnect":
        while (await receive())["type"] != "http.disconnect":
            pass
    if path == "/extras" and scope["http_version"] == "2":
        await send({"type": "http.response.early_hint", "links": [b"</x>; rel=preload"]})
        await send({"type": "http.response.push", "path": "/stream", "headers": []})
    if path == "/echo":
        body, more = b"", True
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                return
            body, more = body + event["body"], event["more_body"]
        await respond(send, body)
    elif path in ("/stream", "/endless", "/raise-after"):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in count():
            await send({"type": "http.response.body", "body": b"x" * 10_000, "more_body": True})
            if path == "/raise-after":
                raise ValueError(OWN)
            if part > 2 and (path == "/stream" or scope["method"] == "HEAD"):
                break
        await send({"type": "http.response.body"})
    else:
        await respond(send, path.encode())


async def websocket(path: str, receive: Any, send: Any) -> None:
    await receive()
    if path == "/raise":
        raise ValueError(OWN)
    if path == "/refuse":
        await send({"type": "websocket.close"})
    elif path == "/reject":
        await send({"type": "websocket.http.response.start", "status": 403, "headers": []})
        await send({"type": "websocket.http.response.body", "body": b"no"})
    elif path == "/never":
        while (await receive())["type"] != "websocket.disconnect":
            pass
    elif path != "/return":
        await send({"type": "websocket.accept"})
        if path == "/raise-after":
            raise ValueError(OWN)
        while path == "/push":
            await send({"type": "websocket.send", "bytes": b"x" * 1000})
        while (event := await receive())["type"] == "websocket.receive":
            if event["text"] == "bye":
                await send({"type": "websocket.close"})
                break
            await send({"type": "websocket.send", "text": event["text"], "bytes": event["bytes"]})


# What is watched


class Log(logging.Handler):
    """Errors that are not the application's, by what and where they are."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.rows: dict[tuple[str, str, str], list[int]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if "flood" in record.msg or record.msg.startswith("Shut down"):
            return  # which some of the input is, and some has to be forced to
        conn = next((arg for arg in record.args or () if isinstance(arg, Conn)), None)
        error = record.exc_info[1] if record.exc_info else None
        for leaf in leaves(error):
            if str(leaf) != OWN:
                what = f"{type(leaf).__name__}: {str(leaf)[:200]}"
                what = re.sub(r"0x\w+|\d+|b?'[^']*'|b?\"[^\"]*\"", "_", what)
                row = (record.msg.partition(" (")[0], what, where(leaf))
                self.rows.setdefault(row, []).append(index_of(conn))


def leaves(error: BaseException | None) -> Iterator[BaseException | None]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from leaves(part)
    else:
        yield error


def where(error: BaseException | None) -> str:
    """Return which code raised the error, and whether it is Hypercorn's or ours."""
    frames = traceback.extract_tb(error.__traceback__ if error else None)
    ours = [f for f in frames if "httptrack" in f.filename or "hypercorn" in f.filename]
    names = [
        f"{'/'.join(Path(f.filename).parts[-3:])}:{f.lineno}" for f in (*ours[-2:], *frames[-1:])
    ]
    return " > ".join(dict.fromkeys(names))


def index_of(conn: Conn | None) -> int:
    """Which connection of the fuzzer's; negative if it is another."""
    return int(ip_address(conn.client[0])) - FIRST_ADDRESS if conn and conn.client else -1


class Rounds(trio.abc.Instrument):
    """The longest time that the event loop took between two looks at its sockets."""

    def __init__(self) -> None:
        self.worst = 0.0
        self._began = time.perf_counter()

    def after_io_wait(self, timeout: float) -> None:
        self._began = time.perf_counter()

    def before_io_wait(self, timeout: float) -> None:
        self.worst = max(self.worst, time.perf_counter() - self._began)


class Fuzz:
    """One server, its bad and good clients, and a tracker that checks each transition."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.failures: list[str] = []
        self.log = Log()
        self.errorlog = logging.Logger("error")
        self.errorlog.addHandler(self.log)
        self.done = 0
        self.responses: Counter[str] = Counter()
        self.slowest = 0.0
        self.reasons: Counter[str | None] = Counter()
        self._accepted = 0
        self._states: WeakKeyDictionary[Conn, ConnState] = WeakKeyDictionary()
        self._conns: dict[int, Conn] = {}
        self._in_flight: set[int] = set()
        self._attacked = trio.Event()
        self._stopped = trio.Event()
        self._ports: dict[bool, int] = {}

    def fail(self, message: str) -> None:
        self.failures.append(f"seed {self.seed}: {message}")

    def track(self, conn: Conn, state: ConnState) -> None:
        if conn in self._states:
            allowed = state in TRANSITIONS[self._states[conn]]
        else:
            allowed = state is ConnState.NEW
            self._accepted += 1
            self._conns[index_of(conn)] = conn
        if not allowed:
            self.fail(f"connection {index_of(conn)}: {state} after {self._states.get(conn)}")
        self._states[conn] = state
        if state.terminal:
            self.reasons[conn.close_reason or str(state)] += 1
        if self.seed % 2 == 0:
            self._act(conn, index_of(conn))

    def _act(self, conn: Conn, index: int) -> None:
        """Close or drain it: one connection of ten at each state."""
        if index >= 0 and (index + len(conn.exchanges)) % 10 == conn.state:
            conn.close("closed_by_tracker")
        elif index >= 0 and index % 10 == 5 + conn.state:
            conn.drain()

    # Bad clients

    async def attack(self, index: int, *, task_status: trio.TaskStatus[None] | None = None) -> None:
        """Do what is planned; with a ``task_status``, stay until the server has shut down."""
        plan = make_plan(self.seed, index)
        self._in_flight.add(index)
        address = str(ip_address(FIRST_ADDRESS + index))
        transport = await trio.open_tcp_stream(
            "127.0.0.1", self._ports[plan.tls], local_address=address
        )
        try:
            await self._converse(index, plan, transport, task_status)
        finally:
            transport.socket.close()
        conn = self._conns.pop(index, None)  # a reset may have come before its address was read
        if conn is not None:
            with trio.move_on_after(IN_TIME) as patience:
                await conn.wait_closed()
            if patience.cancelled_caught:
                self.fail(f"connection {index} ({plan.end}) is still {conn.state}")
        self._in_flight.discard(index)
        self.done += 1

    async def _converse(
        self,
        index: int,
        plan: Plan,
        transport: trio.SocketStream,
        task_status: trio.TaskStatus[None] | None,
    ) -> None:
        stream: Any = transport
        if plan.alpn is not None:
            stream = trio.SSLStream(
                transport, TLS[plan.alpn], server_hostname="localhost", https_compatible=True
            )
        read = trio.Event()
        async with trio.open_nursery() as nursery:
            with suppress(*LOST), trio.move_on_after(1):  # the server may read no further
                if stream is not transport:
                    await stream.do_handshake()
                if not plan.deaf:
                    nursery.start_soon(read_enough, stream, read)
                for chunk, pause, raw in plan.chunks:
                    await (transport if raw else stream).send_all(chunk)
                    for _ in range(pause):
                        await trio.lowlevel.checkpoint()
            if task_status is not None:
                task_status.started()
                await self._stopped.wait()
            elif plan.end == "reset" or unsent(transport):
                reset(transport)
            elif plan.end == "half-close":
                with suppress(OSError):
                    transport.socket.shutdown(trio.socket.SHUT_WR)
                with trio.move_on_after(IN_TIME) as patience:
                    await read.wait()
                if patience.cancelled_caught:
                    self.fail(f"connection {index}: no end after a half-close")
            else:
                with suppress(*LOST, trio.BusyResourceError), trio.move_on_after(1):
                    await stream.aclose()
            nursery.cancel_scope.cancel()

    # Good clients

    @asynccontextmanager
    async def in_time(self, client: str) -> AsyncIterator[None]:
        began = trio.current_time()
        with trio.fail_after(IN_TIME):
            yield
        self.slowest = max(self.slowest, trio.current_time() - began)
        self.responses[client] += 1
        await trio.sleep(0.01)

    async def good_http1(self) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", self._ports[False]) as stream:
            for n in range(100):
                async with self.in_time("http/1.1"):
                    assert await http1(stream, path=f"/good/{n}") == (200, b"/good/%d" % n)

    async def good_http2(self) -> None:
        transport = await trio.open_tcp_stream("127.0.0.1", self._ports[True])
        stream = trio.SSLStream(
            transport, TLS["h2"], server_hostname="localhost", https_compatible=True
        )
        async with stream:
            client = Http2(stream)
            await client.start()
            for n in range(100):
                async with self.in_time("h2"):
                    assert await client.get(f"/good/{n}") == ("200", b"/good/%d" % n)

    async def good_websocket(self) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", self._ports[False]) as stream:
            await stream.send_all(handshake("/echo"))
            async with self.in_time("accept"):
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 101 ")
            client = wsproto.connection.Connection(wsproto.ConnectionType.CLIENT)
            for n in range(100):
                await stream.send_all(client.send(wsproto.events.TextMessage(f"good {n}")))
                async with self.in_time("websocket"):
                    assert await next_message(stream, client) == f"good {n}"

    async def _be_good(self, client: Callable[[], Awaitable[object]]) -> None:
        while not self._attacked.is_set():
            try:
                await client()
            except Exception as error:
                self.fail(f"{client.__name__}: {error!r}, amid {sorted(self._in_flight)}")
                return

    # The run

    async def run(self, certificate: Path, indices: Iterable[int], stay: int = 20) -> None:
        """Attack as ``indices`` say; shut down while so many more stay."""
        accesslog = logging.Logger("access")
        accesslog.addHandler(logging.NullHandler())  # so that what it logs is put together
        config = Config.from_mapping(
            bind="127.0.0.1:0",
            insecure_bind="127.0.0.1:0",
            certfile=str(certificate),
            keyfile=str(certificate),
            errorlog=self.errorlog,
            accesslog=accesslog,
            graceful_timeout=GRACE,
            server_names=["localhost"],
            websocket_max_message_size=2**15,
            websocket_ping_interval=0.05,
        )
        for name, value in DEADLINES.items() if self.seed % 2 == 0 else ():
            setattr(config, name, value)
        rounds = Rounds()
        async with tracked_server(app, config, tracker=self) as server:
            self._ports = {"https" in url: int(url.rpartition(":")[2]) for url in server.urls}
            before = await census()
            trio.lowlevel.add_instrument(rounds)
            shared = iter(indices)
            async with trio.open_nursery() as good:
                for client in (self.good_http1, self.good_http2, self.good_websocket):
                    good.start_soon(self._be_good, client)
                async with trio.open_nursery() as bad:
                    for _ in range(CLIENTS):
                        bad.start_soon(self._attack_all, shared)
                self._attacked.set()
            trio.lowlevel.remove_instrument(rounds)
            with trio.move_on_after(IN_TIME):
                while (after := await census()) != before:  # noqa: ASYNC110
                    await trio.sleep(0.05)
            if after != before:
                gc.collect()  # what is left then is in a task
                left = [index_of(c.conn) for c in gc.get_objects() if isinstance(c, Connection)]
                self.fail(f"tasks and files were {before}, are {after}; left are {left}")
            await self._shut_down(server.shutdown, range(self.done, self.done + stay))
        if server.conn_tracker.count:
            self.fail(f"ConnTracker.count is {server.conn_tracker.count}")
        if sum(self.reasons.values()) != self._accepted:
            self.fail(f"{self._accepted} connections, {sum(self.reasons.values())} ends")
        if rounds.worst > STALL:
            self.fail(f"a round of the event loop took {rounds.worst:.2f} s")
        for (message, what, place), found in self.log.rows.items():
            self.fail(f"{len(found)} x {message}: {what}\n    {place}\n    --only {min(found)}")

    async def _attack_all(self, shared: Iterator[int]) -> None:
        for index in shared:
            await self.attack(index)

    async def _shut_down(self, shutdown: Callable[[], Awaitable[object]], stay: range) -> None:
        """Shut down while some connections stay."""
        async with trio.open_nursery() as nursery:
            for index in stay:
                await nursery.start(partial(self.attack, index))
            began = trio.current_time()
            await shutdown()
            if (took := trio.current_time() - began) > GRACE + 0.5:
                self.fail(f"the shutdown took {took:.2f} s")
            self._stopped.set()


def unsent(stream: trio.SocketStream) -> bool:
    """Whether a FIN would wait, unseen, behind bytes for which the server has no room."""
    if not SEES_UNSENT:
        return False
    size = array("i", [0])
    fcntl.ioctl(stream.socket.fileno(), termios.TIOCOUTQ, size)
    return size[0] > 0


async def read_enough(stream: Any, done: trio.Event) -> None:
    received = 0
    with suppress(*LOST):
        while received < ENOUGH and (data := await stream.receive_some()):
            received += len(data)
    done.set()


async def next_message(stream: trio.SocketStream, client: wsproto.connection.Connection) -> str:
    while True:
        for event in client.events():
            if isinstance(event, wsproto.events.TextMessage):
                return event.data
            if isinstance(event, wsproto.events.Ping):
                await stream.send_all(client.send(event.response()))
        client.receive_data(await stream.receive_some())


async def census() -> tuple[int, int]:
    await wait_all_tasks_blocked()
    return trio.lowlevel.current_statistics().tasks_living, open_files()


def rss() -> float:
    """Resident memory in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def soak(seconds: float) -> Iterator[int]:
    """Yield indices for so long, and report the memory ten times."""
    began, said = time.perf_counter(), 0
    for index in takewhile(lambda _: time.perf_counter() - began < seconds, count()):
        if (tenth := int((time.perf_counter() - began) / seconds * 10)) > said:
            said = tenth
            say(f"{index} connections, {rss():.0f} MB")
        yield index


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--connections", type=int, default=20_000, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, nargs="+", metavar="I", help="these and no others")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="for so long, not so many")
    args = parser.parse_args()
    say(f"seed {args.seed}")
    indices = args.only or (soak(args.soak) if args.soak else range(args.connections))
    fuzz = Fuzz(args.seed)
    if args.only:
        fuzz.errorlog.addHandler(logging.StreamHandler())
        for index in args.only:
            say(f"{index}: {make_plan(args.seed, index)}")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        certificate = Path(folder, "localhost.pem")
        CERT.private_key_and_cert_chain_pem.write_to_path(str(certificate))
        trio.run(fuzz.run, certificate, indices, 0 if args.only else CLIENTS)
    took = time.perf_counter() - began
    say(f"{fuzz.done} connections, {fuzz.done / took:.0f}/s, {rss():.0f} MB")
    say(f"ends {dict(fuzz.reasons)}")
    say(f"correct responses {dict(fuzz.responses)}, the slowest in {fuzz.slowest:.2f} s")
    sys.exit("\n".join(fuzz.failures) or None)


if __name__ == "__main__":
    main()
