"""The README's examples, as they stand there."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)
COMMANDS = [block.strip() for kind, block in BLOCKS if kind == "console" and "hypercorn" in block]
FILES = {
    block.split("\n")[0].removeprefix("# "): block.replace(":8000", ":0")
    for kind, block in BLOCKS
    if kind in ("python", "toml")
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with every file that the README shows."""
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    return tmp_path


def listen_to_ctrl_c() -> None:
    """In a new process: it ignores SIGINT if this one does, as in a shell's background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(folder: Path, *args: str) -> Iterator[str]:
    """Start a server; yield its answer to one request, and then its log when it has ended."""
    command = [sys.executable, *args]
    with subprocess.Popen(
        command,
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listen_to_ctrl_c,
    ) as process:
        assert process.stderr is not None
        log = ""
        try:
            for line in process.stderr:
                log += line
                if found := re.search(r"Running on (http://[\d.:]+)", line):
                    yield httpx.get(found[1]).text
                    break
            process.send_signal(signal.SIGINT)
            yield log + process.stderr.read()
        finally:
            process.kill()


def test_there_are_five_ways_in() -> None:
    """None of the examples has got lost, nor grown beyond ten lines."""
    assert sorted(FILES) == [
        "block.py",
        "hypercorn.toml",
        "hypercorn_conf.py",
        "installed.py",
        "myapp.py",
        "serve.py",
        "test_timeout.py",
    ]
    assert len(COMMANDS) == 3
    for content in FILES.values():
        _, *lines = filter(None, content.split("\n"))  # the first is its name
        assert len(lines) < 10


@pytest.mark.parametrize("command", COMMANDS)
def test_hypercorns_command_tracks(command: str, folder: Path) -> None:
    """Each of the commands serves, tracked, and logs the totals at its end."""
    hypercorn, *args = command.split()
    assert hypercorn == "hypercorn"
    answer, log = run(folder, "-m", "hypercorn", *args, "-b", "127.0.0.1:0")
    knows_nothing = "trio_httptrack.config" in command
    assert answer.startswith("new 0, active 0, idle 0" if knows_nothing else "new 0, active 1")
    assert "Connections: new 0, active 0, idle 0; in all: accepted 1, active 1" in log


def test_hypercorns_serve_tracks(folder: Path) -> None:
    """A wrapped config is served tracked until Ctrl-C."""
    answer, log = run(folder, "serve.py")
    assert answer.startswith("new 0, active 1")
    assert "Connections: new 0, active 0, idle 0; in all: accepted 1, active 1" in log


def test_the_block_prints_its_numbers(folder: Path) -> None:
    """The script runs to its end by itself."""
    script = subprocess.run(
        [sys.executable, "block.py"], cwd=folder, check=True, capture_output=True, text=True
    )
    assert "in all: accepted 1, active 1" in script.stdout


def test_the_test_passes(folder: Path) -> None:
    """Without any configuration."""
    command = [sys.executable, "-m", "pytest", "-q", "test_timeout.py"]
    tested = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    assert "1 passed" in tested.stdout


def test_every_guarantee_is_the_name_of_a_test() -> None:
    """What the README promises in bold, tests of the same name show."""
    section = README.read_text().partition("## What a tracked server guarantees")[2]
    promises = re.findall(r"^- \*\*(.+?)\.\*\*", section, re.MULTILINE)
    names = {re.sub(r"\W+", "_", promise).lower() for promise in promises}
    source = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert len(names) == 13
    assert names <= set(re.findall(r"def test_(\w+)", source))
