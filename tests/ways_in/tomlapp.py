"""The same, for a TOML config: that cannot call ``install()``, so the application does."""

from trio_httptrack import install

from .myapp import app, tracker

__all__ = ["app", "tracker"]

install()
