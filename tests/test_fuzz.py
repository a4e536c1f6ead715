"""A short run of the fuzzer; ``nox -s fuzz`` is the long one."""

from __future__ import annotations

import select
from pathlib import Path

import pytest

from .fuzz import Fuzz
from .support import OLD_HYPERCORN

noticed = pytest.mark.skipif(
    not hasattr(select, "epoll"), reason="its handlers end with clients that they do not read"
)


@pytest.mark.skipif(OLD_HYPERCORN, reason="the log of Hypercorn 0.17 is not quiet")
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=noticed)])
async def test_no_input_affects_another_connection(seed: int, certificate: Path) -> None:
    """Good clients are served meanwhile, nothing is left, and the log stays quiet; also where
    handlers are cancelled, slow clients cut off, and connections closed by a tracker."""
    fuzz = Fuzz(seed)
    await fuzz.run(certificate, range(400))
    assert not fuzz.failures
    assert fuzz.done == 420
