"""Optional dependencies: how an import error names the extra to install."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def require_extra(what: str, extra: str) -> Iterator[None]:
    """If an import in the block fails, raise an error that says which extra to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{what} needs {error.name}: pip install 'trio-httptrack[{extra}]'", name=error.name
        ) from None
