"""What is measured: each scenario is a function of a running server that returns what it saw."""

from __future__ import annotations

import random
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import trio
from hyperframe.frame import GoAwayFrame, RstStreamFrame, SettingsFrame

from .clients import LIMIT, Http2, WebSocket, closes, get, response, vanish
from .servers import Running

# A shutdown.


async def stop_short(running: Running, *, all_processes: bool = False) -> str:
    stream = await running.connect()
    await stream.send_all(get("/wait/1"))
    await trio.sleep(0.3)
    running.terminate(all_processes=all_processes)
    return f"{await response(stream)}; {await running.exits(20)}"


async def stop_long(running: Running) -> str:
    stream = await running.connect()
    tag = running.tag()
    await stream.send_all(get(f"/wait/{LIMIT}?{tag}"))
    await trio.sleep(0.3)
    running.terminate()
    outcome = await closes(stream, 20)
    exits = await running.exits(1)
    return f"{outcome}; {exits}; handler: {await running.noted(tag, 0.1)}"


async def stop_idle(running: Running) -> str:
    stream = await running.connect()
    await stream.send_all(get("/wait/0"))
    await response(stream)
    running.terminate()
    return f"{await closes(stream, 20)}; {await running.exits(1)}"


async def stop_arriving(running: Running) -> str:
    stream = await running.connect()
    await stream.send_all(get("/wait/0"))
    await response(stream)
    running.terminate()
    await trio.sleep(0.2)
    try:
        await stream.send_all(get("/wait/0"))
    except trio.BrokenResourceError:
        return "no response (closed)"
    return await response(stream)


async def stop_websocket(running: Running) -> str:
    client = WebSocket(await running.connect())
    tag = running.tag()
    await client.connect(f"/websocket?{tag}")
    await trio.sleep(0.3)
    running.terminate()
    end = f"runs on for over 20 s; {await running.exits(0)}"
    with trio.move_on_after(20):
        end = await client.end()
        end += f" after {running.since_stopped()}; {await running.exits(20)}"
    return f"{end}; handler: {await running.noted(tag, 0.1)}"


async def stop_stream(running: Running) -> str:
    client = Http2(running)
    if not await client.connect():
        return "no HTTP/2"
    await client.get("/wait/1")
    await client.read(0.3)
    running.terminate()
    await client.read(20)
    complete, goaway = client.complete(), client.find(GoAwayFrame)
    whole = "lost"
    if complete:
        whole = f"whole response at {complete - running.stopped_at:.1f} s"
    at = " and ".join(f"{at - running.stopped_at:.1f} s" for at, _ in goaway) or "never"
    return f"{whole}, GOAWAY at {at}; {await running.exits(20)}"


async def stop_idle_http2(running: Running) -> str:
    client = Http2(running)
    if not await client.connect():
        return "no HTTP/2"
    running.terminate()
    await client.read(20)
    at = " and ".join(f"{at - running.stopped_at:.1f} s" for at, _ in client.find(GoAwayFrame))
    return f"GOAWAY at {at or 'never'}; {await running.exits(20)}"


# A client that vanishes or is slow.


async def vanish_while_working(running: Running, *, reset: bool) -> str:
    stream, tag = await running.connect(), running.tag()
    await stream.send_all(get(f"/gone?{tag}"))
    await trio.sleep(0.3)
    await vanish(stream, reset=reset)
    return await running.noted(tag, 3, 2)


async def half_close(running: Running) -> str:
    stream = await running.connect()
    await stream.send_all(get("/wait/1"))
    await trio.sleep(0.3)
    await stream.send_eof()
    return await response(stream)


async def vanish_while_sleeping(running: Running) -> str:
    stream, tag = await running.connect(), running.tag()
    await stream.send_all(get(f"/wait/20?{tag}"))
    await trio.sleep(0.3)
    await vanish(stream, reset=True)
    return await running.noted(tag, 18)


async def vanish_while_receiving(running: Running) -> str:
    stream, tag = await running.connect(), running.tag()
    await stream.send_all(get(f"/receive?{tag}"))
    await trio.sleep(0.3)
    await vanish(stream, reset=False)
    return await running.noted(tag, 10)


async def vanish_while_streaming(running: Running) -> str:
    stream, tag = await running.connect(), running.tag()
    await stream.send_all(get(f"/stream?{tag}"))
    await trio.sleep(0.35)
    await vanish(stream, reset=False)
    return await running.noted(tag, 10)


async def vanish_websocket(running: Running) -> str:
    client, tag = WebSocket(await running.connect()), running.tag()
    await client.connect(f"/websocket?{tag}")
    await trio.sleep(0.3)
    await vanish(client.stream, reset=False)
    return await running.noted(tag, 10)


async def reset_stream(running: Running, path: str, number: int) -> str:
    client, tag = Http2(running), running.tag()
    if not await client.connect():
        return "no HTTP/2"
    await client.get(f"{path}?{tag}")
    await client.read(0.3)
    await client.stream.send_all(RstStreamFrame(client.stream_id, 8).serialize())
    return await running.noted(tag, 3, number)


async def extended_connect(running: Running) -> str:
    client = Http2(running)
    if not await client.connect():
        return "no HTTP/2"
    allowed = any(
        frame.settings.get(SettingsFrame.ENABLE_CONNECT_PROTOCOL)
        for _, frame in client.find(SettingsFrame)
    )
    return "yes" if allowed else "no"


async def silent(running: Running) -> str:
    return await closes(await running.connect())


async def half_headers(running: Running) -> str:
    stream = await running.connect()
    await stream.send_all(b"GET / HTTP/1.1\r\nHost: local")
    return await closes(stream)


async def dripping_headers(running: Running) -> str:
    stream = await running.connect()
    await stream.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")

    async def drip(task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        try:
            while True:
                await stream.send_all(b"x")
                await trio.sleep(1)
        except trio.BrokenResourceError:
            pass

    async with trio.open_nursery() as nursery:
        await nursery.start(drip)
        outcome = await closes(stream)
        nursery.cancel_scope.cancel()
    return outcome


async def idle(running: Running) -> str:
    stream = await running.connect()
    await stream.send_all(get("/wait/0"))
    await response(stream)
    return await closes(stream)


async def half_body(running: Running) -> str:
    stream, tag = await running.connect(), running.tag()
    await stream.send_all(
        f"POST /receive?{tag} HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf".encode()
    )
    return f"{await closes(stream)}; handler: {await running.noted(tag, 0.5)}"


async def unread_response(running: Running) -> str:
    """Of 256 MiB; counted are those that the handler could send."""
    stream, tag = await running.connect(), running.tag()
    await stream.send_all(get(f"/flood/256?{tag}"))
    await trio.sleep(5)
    sent = len(running.notes(tag)) / 16
    await trio.sleep(LIMIT - 10)
    state = "reset" if await is_reset(stream) else f"open for over {LIMIT - 5} s"
    return f"{sent:.0f} of 256 MiB sent; {state}"


async def is_reset(stream: trio.SocketStream) -> bool:
    """Whether the server has given up, without reading anything."""
    return (
        bool(stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)) or tcp_state(stream) != 1
    )


def tcp_state(stream: trio.SocketStream) -> int:
    return stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


async def unread_request(running: Running) -> str:
    """To a handler that sleeps and does not receive."""
    stream, sent = await running.connect(), 0
    await stream.send_all(
        b"POST /wait/10 HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % 2**28
    )
    with trio.move_on_after(5):
        try:
            while sent < 2**28:
                await stream.send_all(b"x" * 2**16)
                sent += 2**16
        except trio.BrokenResourceError:
            return f"{sent / 2**20:.0f} of 256 MiB received, then closed"
    return f"{sent / 2**20:.0f} of 256 MiB received"


async def large_headers(running: Running) -> str:
    """The largest header that gets a 200, sent in pieces, as a network would deliver it."""
    largest = 0
    for kibibytes in (4, 8, 15, 31, 63, 127, 255, 511, 1020, 4000):
        stream = await running.connect()
        got = "no response"
        with trio.move_on_after(10):
            with suppress(trio.BrokenResourceError):
                await stream.send_all(b"GET /wait/0 HTTP/1.1\r\nHost: localhost\r\nX: ")
                for _ in range(kibibytes // 4):
                    await stream.send_all(b"x" * 2**12)
                    await trio.sleep(0.003)
                await stream.send_all(b"x" * (kibibytes % 4 * 2**10) + b"\r\n\r\n")
            got = await closes_or_responds(stream)
        if got != "200":
            return f"{largest} KiB, then {got}"
        largest = kibibytes
    return f"{largest} KiB, no limit found"


async def closes_or_responds(stream: trio.SocketStream) -> str:
    try:
        data = await stream.receive_some(2**16)
    except trio.BrokenResourceError:
        return "reset"
    return data[9:12].decode() if data else "closed"


async def lifespan(running: Running) -> str:
    return "yes" if running.notes("lifespan") else "no"


# A reload: two workers, and clients whose requests take a fifth of a second.


async def reload(running: Running) -> str:
    got = {"whole": 0, "lost": 0}
    longest = 0.0
    over = trio.Event()

    async def client(keep_alive: bool) -> None:
        nonlocal longest
        stream = None
        while not over.is_set():
            began = trio.current_time()
            try:
                if stream is None:
                    stream = await running.connect()
                await stream.send_all(
                    get("/wait/0.2", "" if keep_alive else "Connection: close\r\n")
                )
                result = await response(stream)
            except (OSError, trio.BrokenResourceError):
                result = "no response"
            got["whole" if result.startswith("200") else "lost"] += 1
            longest = max(longest, trio.current_time() - began)
            if not keep_alive or result != "200":
                if stream is not None:
                    await stream.aclose()
                stream = None
            if not result.startswith("200"):
                await trio.sleep(0.05)
            await trio.sleep(random.random() / 20)

    async with trio.open_nursery() as nursery:
        for number in range(24):
            nursery.start_soon(client, number % 3 > 0)
        for _ in range(3):
            await trio.sleep(2)
            running.process.send_signal(signal.SIGHUP)
            await trio.sleep(10)
            if running.process.poll() is not None:
                break
        over.set()
    if running.process.poll() is not None:
        return "SIGHUP terminates the server"
    lost = f"{got['lost']} of {sum(got.values())} requests lost"
    return f"3 reloads: {lost}, the longest took {longest:.1f} s"


async def reload_broken(running: Running) -> str:
    """A reload with an application that cannot be imported."""
    running.break_application()
    running.process.send_signal(signal.SIGHUP)
    await trio.sleep(12)
    try:
        stream = await running.connect()
        await stream.send_all(get("/wait/0"))
        with trio.move_on_after(5):
            return await response(stream)
    except (OSError, trio.BrokenResourceError):
        pass
    state = "runs" if running.process.poll() is None else "has exited"
    return f"no response, the server {state}"


Scenario = Callable[[Running], Awaitable[str]]


@dataclass(frozen=True)
class Group:
    """Scenarios that are measured in the same way."""

    scenarios: Mapping[str, Scenario]
    shared: bool = False
    """Whether one server is enough for all of them, at the same time."""

    tls: bool = False
    workers: int = 1
    servers_at_once: int = 8


STOPS: Mapping[str, Scenario] = {
    "SIGTERM, a request of 1 s in flight": stop_short,
    "SIGTERM to all processes, a request of 1 s in flight": partial(stop_short, all_processes=True),
    "SIGTERM, a request without end in flight": stop_long,
    "SIGTERM, an idle connection": stop_idle,
    "SIGTERM, a request on an idle connection 0.2 s later": stop_arriving,
    "SIGTERM, a WebSocket": stop_websocket,
}
FLOODS = {
    "a client that does not read": unread_response,
    "a handler that does not read": unread_request,
}
STOPS_TLS = {
    "SIGTERM, an HTTP/2 stream of 1 s in flight": stop_stream,
    "SIGTERM, an idle HTTP/2 connection": stop_idle_http2,
}
CLIENTS: Mapping[str, Scenario] = {
    "lifespan": lifespan,
    "client closes (FIN) at 0.3 s, the handler looks at 1 s": partial(
        vanish_while_working, reset=False
    ),
    "client resets (RST) at 0.3 s, the handler looks at 1 s": partial(
        vanish_while_working, reset=True
    ),
    "client half-closes (FIN) at 0.3 s, and reads": half_close,
    "client resets (RST) at 0.3 s, the handler sleeps for 20 s": vanish_while_sleeping,
    "client closes at 0.3 s, the handler receives": vanish_while_receiving,
    "client closes at 0.35 s, the handler sends": vanish_while_streaming,
    "WebSocket closes without a close frame at 0.3 s": vanish_websocket,
    "a client that sends nothing": silent,
    "half of the headers, then nothing": half_headers,
    "headers, a byte a second": dripping_headers,
    "an idle connection": idle,
    "half of a body, then nothing": half_body,
    "the largest header": large_headers,
}
CLIENTS_TLS: Mapping[str, Scenario] = {
    "HTTP/2 stream reset at 0.3 s, the handler receives": partial(
        reset_stream, path="/receive", number=1
    ),
    "HTTP/2 stream reset at 0.3 s, the handler looks at 1 s": partial(
        reset_stream, path="/gone", number=2
    ),
    "WebSockets over HTTP/2": extended_connect,
}
RELOADS = {"SIGHUP under load, two workers": reload}
BROKEN = {"SIGHUP with broken code, two workers": reload_broken}
GROUPS = [
    Group(STOPS),
    Group(STOPS_TLS, tls=True),
    Group(FLOODS),
    Group(CLIENTS, shared=True),
    Group(CLIENTS_TLS, shared=True, tls=True),
    Group(RELOADS, workers=2, servers_at_once=1),
    Group(BROKEN, workers=2),
]
