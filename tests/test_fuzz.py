"""A short run of the fuzzer; ``nox -s fuzz`` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from .fuzz import Fuzz
from .support import OLD_HYPERCORN


@pytest.mark.skipif(OLD_HYPERCORN, reason="the log of Hypercorn 0.17 is not quiet")
async def test_no_input_harms_anybody_but_its_own_connection(certificate: Path) -> None:
    """Good clients are served meanwhile, nothing is left, and the log stays quiet."""
    fuzz = Fuzz(seed=1)
    await fuzz.run(certificate, range(400))
    assert not fuzz.failures
    assert fuzz.done == 420
