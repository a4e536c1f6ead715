"""What only some tests need is imported when they need it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needed(what: str) -> Iterator[None]:
    """Around an import of the extra ``testing``: say how to install it where it is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{what} needs {error.name}: pip install 'trio-httptrack[testing]'", name=error.name
        ) from None
