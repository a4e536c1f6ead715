"""Hypercorn's lifespan, for applications whose lifespan does not end as it expects."""

from __future__ import annotations

from typing import Any

import trio
from hypercorn.trio.lifespan import Lifespan as HypercornLifespan


class Lifespan(HypercornLifespan):
    """Ends the server where the application's has failed, and serves one that has none.

    After a failed startup Hypercorn goes on to bind, and to accept, until the failure has
    found its way to it; of a failed shutdown it never learns, because it is done sooner. And
    its trio worker dies of an application that just returns when it is asked for its
    lifespan.
    """

    failed = False

    async def asgi_send(self, message: Any) -> None:
        self.failed = message["type"] in ("lifespan.startup.failed", "lifespan.shutdown.failed")
        await super().asgi_send(message)

    async def wait_for_startup(self) -> None:
        if not self.startup.is_set():  # else it has returned, and nobody would read
            await super().wait_for_startup()
        await self._wait_for_failure()

    async def wait_for_shutdown(self) -> None:
        if not self.shutdown.is_set():
            await super().wait_for_shutdown()
        await self._wait_for_failure()

    async def _wait_for_failure(self) -> None:
        if self.failed:
            await trio.sleep_forever()  # it is about to cancel this
