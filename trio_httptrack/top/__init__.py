"""``httptrack top``: what the connections of a server are doing now, in a terminal.

The live view needs rich, the extra ``top``. ``--once`` and ``--json`` do not.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import signal
import sys

import trio

from .._monitor.text import WIDTH, as_text
from ._sources import SourceError, open_source

__all__ = ["main"]

NO_TERMINAL = "a live view needs a terminal; --once prints it as text"


def main(program: str, arguments: list[str]) -> None:
    """Show what the connections of a running server are doing, live."""
    parser = argparse.ArgumentParser(prog=program, description=main.__doc__)
    parser.add_argument(
        "target",
        nargs="?",
        metavar="URL-or-directory",
        help="a status page, such as https://host/status?token=..., or the runtime_dir of the "
        "server; default: the only running server of this user",
    )
    parser.add_argument("--once", action="store_true", help="print the view once, as plain text")
    parser.add_argument("--json", action="store_true", help="print the view once, as JSON")
    options = parser.parse_args(arguments)
    # Ctrl-C exits without a traceback. The live view handles it, to restore the terminal.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        if options.once or options.json:
            write(trio.run(once, options.target, options.json))
        else:
            show(options.target)
    except (SourceError, ModuleNotFoundError) as error:
        sys.exit(f"{program}: {error}")


async def once(target: str | None, as_json: bool) -> str:
    async with open_source(target) as source:
        view = await source.view(source.query)
    if as_json:
        return f"{json.dumps(view)}\n"
    return as_text(view, shutil.get_terminal_size((WIDTH, 0)).columns)


def write(text: str) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):  # as in a container without a locale
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has exited; the interpreter must not flush to it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show(target: str | None) -> None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise SourceError(NO_TERMINAL)
    from ._live import run

    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:  # the process has no controlling terminal
        raise SourceError(NO_TERMINAL) from None
    trio.run(run, target)
