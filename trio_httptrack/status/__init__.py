"""A page that shows what a server's connections are doing, to mount in any ASGI application."""

from ._app import StatusApp

__all__ = ["StatusApp"]

StatusApp.__module__ = __name__  # where users import it from
