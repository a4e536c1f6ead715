"""The command: the demo, or one of :data:`COMMANDS`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from . import _demo
from ._hypercorn.check import check
from .top import main as top

# Each command parses the arguments that follow its name. The first line of its docstring is its
# help.
COMMANDS: dict[str, Callable[[str, list[str]], None]] = {"check": check, "top": top}


def main() -> None:
    """Run the command that the first argument names, or the demo."""
    name = Path(sys.argv[0]).name
    program = "python -m trio_httptrack" if name == "__main__.py" else name
    command = sys.argv[1] if len(sys.argv) > 1 else None
    if command in COMMANDS:
        COMMANDS[command](f"{program} {command}", sys.argv[2:])
    else:
        _demo.run(demo_parser(program).parse_args().bind)


def demo_parser(program: str) -> argparse.ArgumentParser:
    commands = "".join(
        f"\n  {name:8} {(command.__doc__ or '').partition(chr(10))[0]}"
        for name, command in COMMANDS.items()
    )
    parser = argparse.ArgumentParser(
        prog=program,
        usage="%(prog)s [-h] [--bind HOST:PORT]\n       %(prog)s COMMAND ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Without a command, serve the demo: a small application with a status page\n"
        "that shows its connections, and with every transition in the log.",
        epilog=f"commands:{commands}\n\n'{program} COMMAND --help' describes a command.",
    )
    parser.add_argument(
        "--bind",
        default="127.0.0.1:8000",
        metavar="HOST:PORT",
        help="where the demo listens; default: %(default)s",
    )
    return parser


if __name__ == "__main__":
    main()
