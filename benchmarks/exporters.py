"""Measure what the exporters cost: ``python -m benchmarks.exporters``.

Valgrind's callgrind counts the instructions that a tracked server executes for a request, with and
without an exporter. A cost of one per cent is lost in the noise of any clock, but the number of
instructions is the same each time. A scrape, or an export, is timed separately.
Needs valgrind. Takes five minutes.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

EXPORTERS = {
    "prometheus": "",
    "prometheus, multiprocess": "",
    "opentelemetry": "",
    "statsd": "hypercorn's statsd",
}
KINDS = {"get": "HTTP/1.1 keep-alive, small GET", "one-shot": "one request per connection"}
REQUESTS = 160, 960
SERVER = [sys.executable, "-m", "benchmarks.exporting"]


def instructions(exporter: str, kind: str) -> float:
    """Return the instructions for one request: those of additional requests, by their number."""
    few, many = (_run(exporter, kind, requests) for requests in REQUESTS)
    return (many - few) / (REQUESTS[1] - REQUESTS[0])


def _run(exporter: str, kind: str, requests: int) -> int:
    callgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    output = _server([*callgrind, *SERVER, kind, str(requests)], exporter).stderr
    found = re.search(r"Collected : (\d+)", output)
    assert found is not None, output
    return int(found[1])


def milliseconds(exporter: str) -> float:
    """Return the duration of a scrape or an export."""
    return float(_server([*SERVER, "once", "0"], exporter).stdout or 0)


def _server(command: list[str], exporter: str) -> subprocess.CompletedProcess[str]:
    with TemporaryDirectory() as directory:
        environment = {**os.environ, "EXPORTER": exporter, "PYTHONHASHSEED": "0"}
        if "multiprocess" in exporter:
            environment["PROMETHEUS_MULTIPROC_DIR"] = directory
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exporters", description=__doc__)
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write the table")
    arguments = parser.parse_args()
    if not shutil.which("valgrind"):
        sys.exit("valgrind is needed: apt-get install valgrind")
    table = io.StringIO()
    lines = csv.writer(table, lineterminator="\n")

    def show(*line: str) -> None:
        lines.writerow(line)
        print(*(f"{cell:<{width}}" for cell, width in zip(line, (26, 32, 20, 24), strict=True)))
        sys.stdout.flush()

    show("exporter", "load", "relative speed", "scrape or export")
    with ThreadPoolExecutor(2) as pool:  # each process's instructions are counted separately
        counts = {
            (exporter, kind): pool.submit(instructions, exporter, kind)
            for kind in KINDS
            for exporter in dict.fromkeys([*EXPORTERS.values(), *EXPORTERS])
        }
        for exporter, base in EXPORTERS.items():
            for kind, what in KINDS.items():
                ratio = counts[base, kind].result() / counts[exporter, kind].result()
                show(exporter, what, f"{ratio:.3f}", f"{milliseconds(exporter):.1f} ms")
    if arguments.output:
        arguments.output.write_text(table.getvalue())


if __name__ == "__main__":
    main()
