"""What a shutdown does to the connections that are still there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from hypercorn.trio.worker_context import WorkerContext

    from .worker import Worker


@trio.lowlevel.enable_ki_protection
async def drain(worker: Worker, context: WorkerContext) -> None:
    """Wait for the shutdown and see it to its end.

    Runs beside the worker and is cancelled with it. However it ends, it closes every
    socket that is left: a ``send`` to a peer that does not read ignores cancellation,
    and nothing but its socket's end would wake it.
    """
    try:
        await context.terminated.wait()
        for connection in tuple(worker.connections):
            connection.drain()
        await trio.sleep(worker.config.graceful_timeout)
    finally:
        worker.abort()
