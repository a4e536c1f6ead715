"""The command ``httptrack``: the demo, and the commands beside it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from trio_httptrack.__main__ import COMMANDS

from .hypercorn_process import SECONDS, get, read_all, run_to_its_end

MODULE = (sys.executable, "-m", "trio_httptrack")
SCRIPT = (str(Path(sys.executable).parent / "httptrack"),)


@pytest.mark.parametrize(
    ("command", "name"), [(MODULE, "python -m trio_httptrack"), (SCRIPT, "httptrack")]
)
async def test_the_help_names_every_command(
    command: tuple[str, ...], name: str, tmp_path: Path
) -> None:
    """With what it does, and as it is to be typed."""
    status, stdout, _ = await run_to_its_end(*command, "--help", cwd=tmp_path)
    assert status == 0
    assert stdout.startswith(f"usage: {name} ")
    for each, function in COMMANDS.items():
        assert function.__doc__ is not None
        assert f"  {each:8} {function.__doc__.splitlines()[0]}\n" in stdout


@pytest.mark.parametrize("arguments", [["chek"], ["--bind", "127.0.0.1:0", "check"]])
async def test_a_word_that_is_no_command_is_refused(arguments: list[str], tmp_path: Path) -> None:
    """A misspelt check must not serve the demo."""
    status, _, stderr = await run_to_its_end(*MODULE, *arguments, cwd=tmp_path)
    assert status == 2
    assert stderr.endswith(f"error: unrecognized arguments: {arguments[-1]}\n")


async def test_without_a_command_the_demo_is_served_until_ctrl_c(tmp_path: Path) -> None:
    """Its log says where, and has the totals at the end."""
    process = await trio.lowlevel.open_process(
        [*MODULE, "--bind", "127.0.0.1:0"], cwd=tmp_path, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        with trio.fail_after(SECONDS):
            log = b""
            while (at := re.search(rb"Links to try: (http://\S+)/try\n", log)) is None:
                log += await process.stderr.receive_some()
            assert await get(at[1].decode())
            process.send_signal(signal.SIGINT)
            log += await read_all(process.stderr)
            assert await process.wait() == 0
    finally:
        process.kill()
        await process.wait()
        await process.stderr.aclose()
    assert b"in all: accepted 1, active 1," in log


async def test_the_demo_says_in_one_line_that_it_cannot_listen(tmp_path: Path) -> None:
    """And what to do."""
    status, _, stderr = await run_to_its_end(*MODULE, "--bind", "127.0.0.1:70000", cwd=tmp_path)
    assert status == 1
    last = stderr.splitlines()[-1]
    assert last.startswith("Cannot listen on 127.0.0.1:70000 (")
    assert last.endswith("): choose another address with --bind")
