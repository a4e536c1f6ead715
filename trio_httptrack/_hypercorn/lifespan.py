"""Hypercorn's lifespan, for applications whose lifespan does not end as it expects."""

from __future__ import annotations

from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.trio.lifespan import Lifespan as HypercornLifespan
from hypercorn.typing import AppWrapper, LifespanState
from hypercorn.utils import LifespanFailureError


class Lifespan(HypercornLifespan):
    """Ends the server where the application's has failed, and serves one that has none.

    After a failed startup Hypercorn goes on to bind, and to accept, until the failure has
    found its way to it; of a failed shutdown it never learns, because it is done sooner. And
    its trio worker dies of an application that just returns when it is asked for its
    lifespan.
    """

    failure: LifespanFailureError | None = None

    def __init__(self, app: AppWrapper, config: Config, state: LifespanState) -> None:
        super().__init__(app, config, state)
        self._finished = trio.Event()

    async def handle_lifespan(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        await super().handle_lifespan(task_status=task_status)
        self._finished.set()

    async def asgi_send(self, message: Any) -> None:
        try:
            await super().asgi_send(message)
        except LifespanFailureError as failure:
            self.failure = failure
            raise

    async def wait_for_startup(self) -> None:
        if not self.startup.is_set():  # else it has returned, and nobody would read
            await super().wait_for_startup()
        await self._raise_failure()

    async def wait_for_shutdown(self) -> None:
        if not self.shutdown.is_set():
            await super().wait_for_shutdown()
        await self._raise_failure()

    async def _raise_failure(self) -> None:
        if self.failure is not None:
            await (
                self._finished.wait()
            )  # usually the application raises it itself, which cancels us
            raise self.failure  # here it has swallowed it
