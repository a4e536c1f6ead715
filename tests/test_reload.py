from __future__ import annotations

import re
import select
import signal
from pathlib import Path

import pytest
import trio

from .hypercorn_process import GET, connect, get, hypercorn, read_all
from .reload import APP, WEBSOCKETS, run
from .support import OLD_HYPERCORN

pytestmark = pytest.mark.skipif(OLD_HYPERCORN, reason="Hypercorn 0.17 knows no SIGHUP")


@pytest.mark.skipif(
    not hasattr(select, "epoll"), reason="only Linux is for production: under load, others may lose"
)
@pytest.mark.parametrize("workers", [1, 2])
async def test_a_reload_under_load_loses_no_request_shorter_than_graceful_timeout(
    workers: int, certificate: Path
) -> None:
    """Neither do ten of them and a SIGTERM, and every WebSocket gets a close frame."""
    load, server = await run(certificate, workers=workers, reloads=10, tracked=True)
    assert not load.lost, load
    assert set(load.closed) == {1012}, load
    assert load.closed.total() >= WEBSOCKETS * 11  # one each for each worker that ended
    assert load.succeeded.keys() == {"keep-alive", "one-shot", "httpx HTTP/2", "HTTP/2"}
    assert server.returncode == 0
    reports = re.findall(r"Shut down: \d+ of \d+ connections .* and (\d+) by force", server.stderr)
    assert len(reports) >= 11  # of two workers one may have no connection
    assert set(reports) == {"0"}
    assert "Traceback" not in server.stderr


async def test_a_connection_that_was_not_accepted_yet_is_the_next_workers(
    certificate: Path,
) -> None:
    """The kernel has completed it while the old worker drains; nothing of it is lost."""
    config = certificate.with_name("one_conf.py")
    config.write_text(f"from trio_httptrack import hook\n\nconn_state = hook('{APP}:tracker')\n")
    arguments = ("-k", "trio", "-w", "1", "-c", f"file:{config}", f"{APP}:app")
    async with hypercorn(*arguments) as server:
        old = await get(server.url)
        async with await connect(server.url) as held:
            await held.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n")  # which keeps it draining
            server.process.send_signal(signal.SIGHUP)
            while True:
                async with await connect(server.url) as client:
                    await client.send_all(GET)
                    with trio.move_on_after(0.3) as scope:
                        await read_all(client)
                    if scope.cancelled_caught:  # the old one does not accept any more
                        await held.send_all(b"\r\n")
                        assert old in await read_all(held)
                        response = await read_all(client)
                        break
        assert response.startswith(b"HTTP/1.1 200 ")
        assert not response.endswith(old)
