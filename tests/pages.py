"""README and docs as their readers use them: every code block, in the order of the page.

A reader follows a page by writing its files, typing its commands, and comparing the output:

* A block in Python or a format such as TOML is a file. Its first line is a comment that says the
  name; a file that the page includes has its own. A later command must use it.
* A ``console`` block is typed into a shell, line by line. Each command must succeed, but one with
  the comment ``# fails`` must fail, and ``curl`` must get a success. A server goes on while
  the next commands are typed, until another is started or the page ends; then it gets a Ctrl-C, and
  must end well. A command that ends with ``&`` goes on to the end of the page.
* A ``text`` block is what was printed since the last block of commands was begun: these lines in
  this order, maybe with others between them, as a ``...`` may say. Ports, seconds and the status
  page's token may differ; a command with a token gets the one that was printed.
* Examples with ``>>>`` are doctests, one session for the page.

``python -m tests.pages dist`` does the same in an empty environment for each page, where
``pip install`` is typed, too. Among the tests it is only looked at, to see if it could work.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import venv
from codecs import getincrementaldecoder
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import dedent

import trio
from packaging.requirements import Requirement
from trio.testing import wait_all_tasks_blocked

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SECONDS = 30  # nothing takes so long: what would hang is broken, and fails
INSTALLING = 1200  # neither does an installation, or the whole of the tests
FILES = {"python", "toml", "yaml"}
RUN_ELSEWHERE = {  # than by what the page says
    "promql": "nox -s integration",
    "prometheus.yml": "nox -s integration",
    "caddy": "nox -s integration",
    "http3_client.py": "nox -s integration",
    "sh": "nox -s integration",  # commands for these two
    "output": "nox -s integration",  # and what they print
    "kubernetes.yaml": "a test of its own",
    "dockerfile": "a test of its own",
    "myapp.service": "a test of its own",
    "myapp.socket": "a test of its own",
    "otel-collector.yaml": "nobody, as the page says",
    "go": "nobody, as it is for comparison",
}
INSTALLS = re.compile(r"pip install|-m venv")
IN_CLONE = re.compile(r"python3 -m venv .venv && .venv/bin/pip install -q (-e )?'?\.")
COMMENT = re.compile(r"\s{2,}#.*| &$")
# What differs each time, in a text that is escaped for a regular expression: ports and seconds.
VARYING = re.compile(
    r"(?<=:)\d{4,5}|(?<=',\\ )\d{4,5}|\d+\\\.\d+(?=\\ s\b)|(?<=data:\\ )\d+\\\.\d+"
)
TOKEN = re.compile(r"(?<=token=)[0-9a-f]{32}")
# What listens on port 8000, and how it is told to take a free one.
LISTENS = {
    "hypercorn -k trio": " -b 127.0.0.1:0",
    "-m trio_httptrack": " --bind 127.0.0.1:0",
    "python serve.py": "",
}


@dataclass(frozen=True)
class Block:
    """A code block, or a file that the page includes."""

    page: Path
    line: int
    kind: str
    text: str
    file: str | None = None

    @property
    def elsewhere(self) -> str | None:
        """Who runs it, if it is not run with its page among the tests."""
        if self.kind == "console" and all(map(INSTALLS.search, self.text.splitlines())):
            return "nox -s build"
        return RUN_ELSEWHERE.get(self.file or self.kind)

    def __str__(self) -> str:
        return f"{os.path.relpath(self.page, ROOT)}:{self.line}"


EXECUTED = "code blocks executed"  # the property of a test that says how many


class PageError(AssertionError):
    """A page does not do what it says."""


def pages() -> list[Path]:
    """README.md, and every page of the documentation."""
    generated = {DOCS / "_build", DOCS / "benchmarks"}
    found = [*DOCS.rglob("*.md"), *DOCS.rglob("*.rst")]
    return [ROOT / "README.md", *sorted(each for each in found if not generated & {*each.parents})]


def blocks(page: Path) -> list[Block]:
    """What is on a page, in its order."""
    read = from_markdown if page.suffix == ".md" else from_rst
    return sorted(read(page, page.read_text()), key=lambda block: block.line)


def from_markdown(page: Path, text: str) -> Iterator[Block]:
    for match in re.finditer(r"^```(.*)\n((?s:.*?))^```$", text, re.MULTILINE):
        if not match[1].startswith("{"):  # as a directive does
            yield found(page, match, match[1], match[2])


def from_rst(page: Path, text: str) -> Iterator[Block]:
    body = r"(?: +:.*\n)*\n((?: +.*\n|\n)+)"
    for match in re.finditer(rf"^ *\.\. code-block:: (\w+)\n{body}", f"{text}\n", re.MULTILINE):
        yield found(page, match, match[1], dedent(match[2]).strip("\n") + "\n")
    for match in re.finditer(r"^ *\.\. literalinclude:: (\S+)$", text, re.MULTILINE):
        file = page.parent / match[1]
        kind = {".py": "python", ".yml": "yaml"}.get(file.suffix, file.suffix[1:])
        yield found(page, match, kind, file.read_text(), file.name)
    for match in re.finditer(r"^>>> (?:.+\n)+", text, re.MULTILINE):
        yield found(page, match, "doctest", match[0])


def found(page: Path, at: re.Match[str], kind: str, text: str, file: str | None = None) -> Block:
    line = at.string.count("\n", 0, at.start()) + 1
    if kind in FILES and file is None:
        named = re.match(r"# ([\w-]+\.\w+)\b", text)
        if named is None:
            raise PageError(f"{page}:{line}: the first line must be a comment with the file's name")
        file = named[1]
    return Block(page, line, kind, text, file)


class Reader:
    """A reader who follows one page, in a folder of their own."""

    def __init__(
        self,
        nursery: trio.Nursery,
        folder: Path,
        environ: Mapping[str, str],
        *,
        clone: Path | None,
    ) -> None:
        self.folder = folder
        self.executed: list[Block] = []
        self.transcript = ""
        """All that was printed."""

        self._nursery = nursery
        self._environ = {
            **environ,
            "CURL_HOME": str(folder),
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONUNBUFFERED": "1",
        }
        (folder / ".curlrc").write_text("fail\nsilent\nshow-error\n")
        self._clone = clone
        self._files: dict[str, str] = {}
        self._unused: set[str] = set()
        self._doctested = False
        self._typed_at = 0  # where in the transcript the last commands begin
        self._server: trio.Process | None = None
        self._others: list[trio.Process] = []
        self._started: list[trio.Process] = []
        self._address = "127.0.0.1:0"
        self._printed = trio.lowlevel.ParkingLot()
        # All processes share a pipe, as they share a terminal: so their lines are in order.
        output, self._terminal = os.pipe()
        self._output = trio.lowlevel.FdStream(output)

    async def do(self, block: Block) -> None:
        """Do what a reader does with this block."""
        if block.kind == "console":
            self._typed_at = len(self.transcript)
            for command in block.text.replace("\\\n", "").splitlines():
                await self._type(command)
        elif block.elsewhere is not None:
            return
        elif block.file is not None:
            self._files[block.file] = block.text
            self._unused.add(block.file)
        elif block.kind == "text":
            await self._expect(block.text.splitlines())
        elif block.kind != "doctest":
            raise PageError(f"nobody knows what to do with a block of {block.kind!r}")
        elif not self._doctested:
            self._doctested = True
            await self._type(f"python -m doctest {shlex.quote(str(block.page))}")
        if self._clone is not None or block.elsewhere is None:
            self.executed.append(block)

    async def finish(self) -> None:
        """The page is read: end what still runs, and see that no file was written for nothing."""
        for process in self._others:
            if process.poll() is None:
                kill(process)
            elif process.returncode != 0:
                raise PageError(f"what was started with & has ended with {process.returncode}")
        await self._press_ctrl_c()
        unused = [file for file in self._unused if not any(self._compiled(file))]
        if unused:
            raise PageError(f"{unused[0]} is not used by any command that follows it")

    def _compiled(self, file: str) -> Iterator[Path]:
        return self.folder.glob(f"__pycache__/{Path(file).stem}.*") if ".py" in file else iter(())

    def _save(self, file: str) -> None:
        path, text = self.folder / file, self._here(self._files[file])
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            for compiled in self._compiled(file):
                compiled.unlink()

    async def _type(self, command: str) -> None:
        goes_on, fails = command.endswith(" &"), command.endswith("  # fails")
        command = COMMENT.sub("", command).strip()
        if INSTALLS.search(command) and self._clone is None:
            check_installation(command)
            return
        listens = [option for name, option in LISTENS.items() if name in command]
        if listens:
            await self._press_ctrl_c()
            command = f"{command}{listens[0]}"
        for file in self._files:  # anew, for they may name the server's address
            self._save(file)
            if re.search(rf"(?<![\w./-]){re.escape(file)}(?![\w.-])", command):
                self._unused.discard(file)
        begun = len(self.transcript)
        process = await self._start(self._here(command))
        if listens:
            self._server = process
            self._address = await self._listening(process, begun)
        elif goes_on:
            self._others.append(process)
        elif (await process.wait() != 0) is not fails:
            status = f"failed with status {process.returncode}" if not fails else "should fail"
            raise PageError(f"`{command}` {status}")
        else:
            # What it has printed is in the pipe now, and is not the next command's.
            await wait_all_tasks_blocked()

    def _here(self, text: str) -> str:
        text = text.replace("127.0.0.1:8000", self._address)
        tokens = TOKEN.findall(self.transcript)
        return TOKEN.sub(tokens[-1], text) if tokens else text

    async def _start(self, command: str) -> trio.Process:
        start = partial(
            trio.lowlevel.open_process,
            ["bash", "-o", "pipefail", "-c", command],
            cwd=self._clone if IN_CLONE.match(command) else self.folder,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=self._terminal,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=listen_to_ctrl_c,
        )
        process = await start()
        self._started.append(process)
        self._nursery.start_soon(self._wait, process)
        return process

    async def _wait(self, process: trio.Process) -> None:
        try:
            await process.wait()
        except BaseException:
            kill(process)
            with trio.CancelScope(shield=True):
                await process.wait()
            raise
        await wait_all_tasks_blocked()  # what it has printed is read
        self._printed.unpark_all()

    async def read(self) -> None:
        """Read what is printed, until cancelled."""
        decoder = getincrementaldecoder("utf-8")()
        try:
            async with self._output:
                async for chunk in self._output:
                    self.transcript += decoder.decode(chunk)
                    self._printed.unpark_all()
        finally:
            os.close(self._terminal)

    async def _listening(self, process: trio.Process, begun: int) -> str:
        """The address that a server has found."""
        address = re.compile(r"Running on https?://([\d.:]+)")
        while (match := address.search(self.transcript, begun)) is None:
            if process.poll() is not None:
                raise PageError("the server has ended")
            await self._printed.park()
        return match[1]

    async def _expect(self, lines: list[str]) -> None:
        missing = self._first_missing(lines)
        with trio.move_on_after(SECONDS / 2):
            while missing is not None and any(map(has_processes, self._started)):
                await self._printed.park()
                missing = self._first_missing(lines)
        if missing is not None:
            raise PageError(f"this was not printed: {missing}")

    def _first_missing(self, lines: list[str]) -> str | None:
        at = self._typed_at
        for line in lines:
            if line.strip() != "...":
                pattern = VARYING.sub(r"\\d[\\d.]*", re.escape(line))
                pattern = TOKEN.sub("[0-9a-f]{32}", pattern)
                match = re.compile(rf"(?<![\w.]){pattern}").search(self.transcript, at)
                if match is None:
                    return line
                at = self.transcript.find("\n", match.end())
                if at < 0:
                    at = len(self.transcript)
        return None

    async def _press_ctrl_c(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            with suppress(ProcessLookupError):  # or it has ended by itself
                os.killpg(server.pid, signal.SIGINT)
            if await server.wait() != 0:
                raise PageError(f"the server has ended with status {server.returncode}")


def has_processes(process: trio.Process) -> bool:
    """Whether any of its process group is there; the shell may have left one in the background."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, 0)
        return True
    return False


def kill(process: trio.Process) -> None:
    """All of its process group, if any of it is there."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def listen_to_ctrl_c() -> None:
    """In a new process: it ignores SIGINT if this one does, as in a shell's background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def check_installation(command: str) -> None:
    """What would be installed exists, as far as can be told without installing it."""
    for argument in shlex.split(command.partition("pip install")[2]):
        if re.match(r"trio-httptrack\b", argument):
            extras = Requirement(argument).extras
            if not extras <= set(metadata("trio-httptrack").get_all("Provides-Extra", [])):
                raise PageError(f"`{command}`: there is no extra of that name")


async def follow(
    page: Path, folder: Path, environ: Mapping[str, str], *, clone: Path | None = None
) -> Reader:
    """Do everything on a page, in an empty folder.

    With a clone, which is where what the README says of one is done, things are installed, too.
    Raises a :class:`PageError` at the first block that fails.
    """
    todo = blocks(page)
    failure = None
    async with trio.open_nursery() as nursery:
        reader = Reader(nursery, folder, environ, clone=clone)
        nursery.start_soon(reader.read)
        try:
            for block in todo:
                with trio.move_on_after(SECONDS if clone is None else INSTALLING) as doing:
                    await reader.do(block)
                if doing.cancelled_caught:
                    raise PageError("it does not come to an end")
            await reader.finish()
        except PageError as error:
            failure = f"{block}: {error}\n\n{reader.transcript}"
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise PageError(failure)
    return reader


def follow_as_a_stranger(page: Path, dist: Path) -> int:
    """Do everything on a page in an empty environment, with what was built; count the blocks."""
    (sdist,) = dist.glob("*.tar.gz")
    with TemporaryDirectory() as name:
        folder, environment = Path(name, "page"), Path(name, "environment")
        folder.mkdir()
        venv.create(environment, with_pip=True)
        shutil.unpack_archive(sdist, name, filter="data")
        clone = Path(name, sdist.name.removesuffix(".tar.gz"))
        environ = {
            **{key: os.environ[key] for key in os.environ if not key.startswith("PYTHON")},
            "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
            "PIP_FIND_LINKS": str(dist),
        }
        reader = trio.run(partial(follow, page, folder, environ, clone=clone))
    return len(reader.executed)


def main() -> None:
    dist = Path(sys.argv[1]).resolve()
    total = 0
    for page in pages():
        if any(block.kind == "console" and INSTALLS.search(block.text) for block in blocks(page)):
            number = follow_as_a_stranger(page, dist)
            total += number
            print(f"{os.path.relpath(page, ROOT)}: {number} code blocks", flush=True)  # noqa: T201
    print(f"{total} code blocks executed in empty environments")  # noqa: T201
    if not total:
        sys.exit(1)


if __name__ == "__main__":
    main()
