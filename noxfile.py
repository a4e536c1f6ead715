"""What a change must pass, on every Python and on the oldest dependencies: ``nox``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import nox
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

nox.needs_version = ">=2025.2.9"
nox.options.error_on_missing_interpreters = False
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["tests", "oldest", "lint", "types", "docs", "build"]

PYPROJECT = nox.project.load_toml("pyproject.toml")

if shutil.which("pyenv"):  # whose python3.x commands refuse to run unless their version is selected
    pyenv = subprocess.run(["pyenv", "versions", "--bare"], capture_output=True, text=True)
    os.environ["PYENV_VERSION"] = ":".join(reversed(pyenv.stdout.split()))


def pythons() -> list[str]:
    """Every Python of this machine that the package may be installed for."""
    found = {f"{sys.version_info.major}.{sys.version_info.minor}"}
    for directory in os.get_exec_path():
        names = [path.name for path in Path(directory).glob("python3.*")]
        found.update(name[6:] for name in names if re.fullmatch(r"python3\.\d+", name))
    supported = SpecifierSet(PYPROJECT["project"]["requires-python"])
    return sorted(supported.filter(found), key=Version)


@nox.session(python=pythons())
def tests(session: nox.Session) -> None:
    """The tests and doctests, on every Python that is found."""
    session.install(".[test]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def portable(session: nox.Session) -> None:
    """The tests on a Python that lacks what only Linux has, as on macOS and Windows."""
    session.install(".[test]")
    lacking = str(Path("tests/portable").absolute())
    options = ["--doctest-ignore-import-errors", *session.posargs]
    session.run("python", "-m", "pytest", *options, env={"PYTHONPATH": lacking})


@nox.session(python="3.10")
def oldest(session: nox.Session) -> None:
    """The tests with every lower bound in pyproject.toml as the version."""
    project = PYPROJECT["project"]
    dependencies = chain(project["dependencies"], *project["optional-dependencies"].values())
    constraints = Path(session.create_tmp(), "oldest.txt")
    constraints.write_text("\n".join(filter(None, map(as_oldest, dependencies))))
    session.install(".[test]", "-c", str(constraints))
    session.run("python", "-m", "pytest", *session.posargs)


def as_oldest(dependency: str) -> str | None:
    requirement = Requirement(dependency)
    lower = [spec.version for spec in requirement.specifier if spec.operator == ">="]
    marker = f"; {requirement.marker}" if requirement.marker else ""
    return f"{requirement.name}=={lower[0]}{marker}" if lower else None


@nox.session
def lint(session: nox.Session) -> None:
    session.install(".[lint]")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """As its developers check the code, and as a user's type checker reads what is installed."""
    session.install(".[bench,browser,docs,integration,lint,test]")
    session.run("mypy")
    session.run("pyright")
    session.run("pyright", "--verifytypes", "trio_httptrack", "--ignoreexternal")


@nox.session
def docs(session: nox.Session) -> None:
    """The pages, and that nothing is missing from them."""
    session.install(".[docs,test]")
    session.run("sphinx-build", "-nW", "-b", "html", "docs", "docs/_build")
    session.run("python", "-m", "pytest", "tests/built_docs")


@nox.session
def build(session: nox.Session) -> None:
    """What would be published, used in empty environments as README and docs say."""
    session.install(".[build]")
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build", "-o", "dist")
    session.run("twine", "check", "--strict", *map(str, Path("dist").iterdir()))
    session.run("python", "-m", "tests.pages", "dist")


@nox.session
def fuzz(session: nox.Session) -> None:
    """Bad input against the real worker: ``nox -s fuzz -- --connections 50000 --seed 7``"""
    session.install(".[test]")
    for arguments in [session.posargs] if session.posargs else [["--seed", "1"], ["--soak", "60"]]:
        session.run("python", "-m", "tests.fuzz", *arguments)


@nox.session
def reload(session: nox.Session) -> None:
    """Reloads under load, beside plain Hypercorn: ``nox -s reload -- --reloads 50``"""
    session.install(".[test]")
    session.run("python", "-m", "tests.reload", *session.posargs)


@nox.session
def integration(session: nox.Session) -> None:
    """With a real Prometheus and tmux, after ``apt-get install prometheus tmux``, and Caddy."""
    for command in ("prometheus", "tmux"):
        if shutil.which(command) is None:
            session.error(f"apt-get install {command}")
    session.install(".[integration]")
    session.run("python", "-m", "pytest", "tests/integration", *session.posargs)


@nox.session
def browser(session: nox.Session) -> None:
    """The status page in a real browser: after ``apt-get install chromium``"""
    if shutil.which("chromium") is None:
        session.error("apt-get install chromium")
    session.install(".[browser]")
    session.run("python", "-m", "pytest", "tests/browser", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """The table of the documentation: ``nox -s bench -- --quick --output /tmp/bench``"""
    session.install(".[bench]")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """``nox -s demo -- --bind 127.0.0.1:8080``"""
    session.install(".")
    session.run("python", "-m", "trio_httptrack", *session.posargs)
