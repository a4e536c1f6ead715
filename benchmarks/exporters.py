"""Measure what the exporters cost: ``python -m benchmarks.exporters``.

Each runs on a tracked Hypercorn, while its page is read once a second, beside one without.
All on one core, asked in turn by a load generator on another. A ratio is the
median of the rounds' own, with the least and the greatest behind it. Takes five minutes.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import trustme

from .servers import Load, Server, loading, serving

# What is compared, with what, and what is read of it while it is under load.
EXPORTERS = {
    "prometheus": ("", "text/plain"),
    "prometheus, multiprocess": ("", "text/plain"),
    "opentelemetry": ("", None),
    "statsd": ("hypercorn's statsd", None),
    "status page, watched": ("", "text/event-stream"),
}
LOADS = {
    "get": "HTTP/1.1 keep-alive, small GET",
    "one-shot": "one request per connection",
    "h2-10": "HTTP/2 over TLS, 10 streams at a time",
}


@contextmanager
def reading(server: Server, accept: str | None) -> Iterator[None]:
    """Read the exporter's page once a second while the block runs; events come by themselves."""
    over = threading.Event()
    url = f"http://127.0.0.1:{server.ports['http']}/watched"

    def read() -> None:
        while not over.is_set():
            request = urllib.request.Request(url, headers={"accept": accept or ""})
            with urllib.request.urlopen(request) as answer:
                while answer.readline() and not over.is_set():
                    pass
            over.wait(1)

    reader = threading.Thread(target=read)
    if accept is not None:
        reader.start()
    try:
        yield
    finally:
        over.set()
        if accept is not None:
            reader.join()


def measure(
    load: Load, certificate: Path, exporter: str, rounds: int, seconds: float
) -> Iterator[list[str]]:
    """The lines of the table about one exporter."""
    base, accept = EXPORTERS[exporter]
    with ExitStack() as stack:
        servers = []
        for name in (base, exporter):
            environment = {"EXPORTER": name}
            if "multiprocess" in name:
                directory = stack.enter_context(TemporaryDirectory())
                environment["PROMETHEUS_MULTIPROC_DIR"] = directory
            servers.append(
                stack.enter_context(
                    serving(
                        "trio",
                        "settings_exporting",
                        certificate,
                        app="benchmarks.exporting:app",
                        environment=environment,
                    )
                )
            )
        for kind, what in LOADS.items():
            scheme = "https" if kind.startswith("h2") else "http"
            ratios = []
            for number in range(rounds):
                rates = {}
                for which in (0, 1) if number % 2 else (1, 0):
                    with reading(servers[which], accept if which else None):
                        rates[which] = load(
                            "run",
                            kind=kind,
                            port=servers[which].ports[scheme],
                            connections=32,
                            seconds=seconds,
                            warmup=0.3,
                        )["rate"]
                ratios.append(rates[1] / rates[0])
            spread = f"{min(ratios):.3f}-{max(ratios):.3f}"
            yield [exporter, what, f"{median(ratios):.3f}", spread]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exporters", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each round")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write the table")
    parser.add_argument("exporters", nargs="*", help=", ".join(EXPORTERS))
    arguments = parser.parse_args()
    if unknown := set(arguments.exporters) - set(EXPORTERS):
        sys.exit(f"There is no exporter {', '.join(unknown)}")
    table = io.StringIO()
    lines = csv.writer(table, lineterminator="\n")

    def show(line: list[str]) -> None:
        lines.writerow(line)
        print(*(f"{cell:<{width}}" for cell, width in zip(line, (26, 40, 10, 12), strict=True)))
        sys.stdout.flush()

    show(["exporter", "load, 32 connections", "ratio", "spread"])
    with TemporaryDirectory() as folder, loading() as load:
        certificate = Path(folder, "localhost.pem")
        issued = trustme.CA().issue_cert("localhost", "127.0.0.1")
        issued.private_key_and_cert_chain_pem.write_to_path(str(certificate))
        for exporter in arguments.exporters or EXPORTERS:
            for line in measure(load, certificate, exporter, arguments.rounds, arguments.seconds):
                show(line)
    if arguments.output:
        arguments.output.write_text(table.getvalue())


if __name__ == "__main__":
    main()
