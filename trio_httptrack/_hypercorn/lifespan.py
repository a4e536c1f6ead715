"""Hypercorn's lifespan, for applications that fail at startup or shutdown, or have no lifespan."""

from __future__ import annotations

from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.trio.lifespan import Lifespan as HypercornLifespan
from hypercorn.typing import AppWrapper, LifespanState
from hypercorn.utils import LifespanFailureError


class Lifespan(HypercornLifespan):
    """Stops the server if the application's lifespan fails, and serves one that has none.

    After a failed startup, Hypercorn binds and accepts until the failure is raised. It never
    notices a failed shutdown, because it returns earlier. And its trio worker crashes if an
    application just returns when it is called with the lifespan scope.
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
        if not self.startup.is_set():  # otherwise the application has returned: it has no lifespan
            await super().wait_for_startup()
        await self._raise_failure()

    async def wait_for_shutdown(self) -> None:
        if not self.shutdown.is_set():
            await super().wait_for_shutdown()
        await self._raise_failure()

    async def _raise_failure(self) -> None:
        if self.failure is not None:
            # Usually the application raises the error itself, which cancels us here.
            await self._finished.wait()
            raise self.failure  # the application has swallowed it
