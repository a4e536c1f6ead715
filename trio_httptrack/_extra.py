"""What only some users need is imported when they need it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def require_extra(what: str, extra: str) -> Iterator[None]:
    """Around an import of one of our extras: say how to install it where it is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{what} needs {error.name}: pip install 'trio-httptrack[{extra}]'", name=error.name
        ) from None
