"""Values of a wrong type for Hypercorn's settings are refused, and no others."""

from __future__ import annotations

import logging
import math
import re
import ssl
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import hypercorn.__main__
import pytest
from hypercorn.config import Config
from hypercorn.logging import Logger

from trio_httptrack import tracked_server
from trio_httptrack._hypercorn.setting_types import OVERRIDES
from trio_httptrack._hypercorn.settings import SettingError, is_hypercorn_setting, settings_of
from trio_httptrack.testing import memory_server

from .hypercorn_process import failing_hypercorn
from .support import OLD_HYPERCORN, app

WRONG: list[tuple[str, Any, str]] = [
    ("keep_alive_timeout", "5", "a number, not '5'"),
    ("keep_alive_timeout", True, "a number, not True"),
    ("keep_alive_timeout", None, "a number, not None"),
    ("read_timeout", "5", "a number or None, not '5'"),
    ("websocket_ping_interval", [5], "a number or None, not [5]"),
    ("h2_max_concurrent_streams", 100.5, "an integer, not 100.5"),
    ("h2_max_concurrent_streams", False, "an integer, not False"),
    ("backlog", None, "an integer, not None"),
    ("h11_max_incomplete_size", 1e6, "an integer, not 1000000.0"),
    ("keep_alive_max_requests", "many", "a number, not 'many'"),
    ("include_date_header", "no", "True or False, not 'no'"),
    ("debug", 2, "True or False, not 2"),
    ("debug", None, "True or False, not None"),
    ("server_names", "example.com", "a list of strings, not 'example.com'"),
    ("server_names", b"example.com", "a list of strings, not b'example.com'"),
    ("alpn_protocols", [b"h2"], "a list of strings, not [b'h2']"),
    ("bind", 8000, "a list of strings or a string, not 8000"),
    ("root_path", 5, "a string, not 5"),
    ("loglevel", logging.DEBUG, "a string, not 10"),
    ("statsd_host", 8125, "a string or None, not 8125"),
    ("logconfig_dict", "log.json", "a dict or None, not 'log.json'"),
    ("verify_mode", "CERT_REQUIRED", "an integer or None, not 'CERT_REQUIRED'"),
    ("certfile", 5, "a string, bytes, a path or None, not 5"),
    ("accesslog", True, "a Logger, a string, a path, False or None, not True"),
    ("keyfile_password", 5, "a string, bytes, a function or None, not 5"),
    ("logger_class", "Logger", "a function, not 'Logger'"),
]


@pytest.mark.parametrize(("name", "value", "complaint"), WRONG)
async def test_a_wrong_type_is_refused_as_a_wrong_name_is(
    name: str, value: Any, complaint: str
) -> None:
    """With the setting, what it must be, and what it was."""
    with pytest.raises(TypeError) as refused:
        async with memory_server(app, **{name: value}):
            raise AssertionError
    assert str(refused.value) == f"memory_server(): {name} must be {complaint}"


@pytest.mark.parametrize("server", [memory_server, tracked_server])
async def test_a_wrong_type_in_a_config_is_refused_at_the_start(server: Any) -> None:
    """And not when a connection meets it."""
    config = Config.from_mapping(bind="127.0.0.1:0", keep_alive_timeout="5")
    with pytest.raises(SettingError, match=r"^keep_alive_timeout must be a number, not '5'$"):
        async with server(app, config):
            raise AssertionError


async def test_the_command_says_so_in_one_line(tmp_path: Path) -> None:
    """Of a TOML file, in which a number between quotes is soon written."""
    file = tmp_path / "hypercorn.toml"
    file.write_text('conn_state = "ways_in.tomlapp:tracker"\nkeep_alive_timeout = "5"\n')
    status, stderr = await failing_hypercorn(
        "-k", "trio", "-c", str(file), "-w", "0", "ways_in.tomlapp:app"
    )
    assert status == 1
    assert stderr == "trio_httptrack: keep_alive_timeout must be a number, not '5'\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("keep_alive_timeout", 5),
        ("keep_alive_timeout", math.inf),
        ("read_timeout", 0.5),
        ("max_requests", 1e3),
        ("keep_alive_max_requests", math.inf),
        ("max_requests", None),
        ("max_app_queue_size", math.inf),
        ("websocket_max_message_size", 1e6),
        ("wsgi_max_body_size", 1e6),
        ("debug", 0),
        ("use_reloader", 1),
        ("bind", "127.0.0.1:0"),
        ("bind", ("127.0.0.1:0", "[::1]:0")),
        ("server_names", {"here", "there"}),
        ("server_names", ()),
        ("certfile", Path("cert.pem")),
        ("ca_certs", Path("ca.pem")),
        ("keyfile", b"key.pem"),
        ("pid_path", Path("pid")),
        ("keyfile_password", lambda: "secret"),
        ("keyfile_password", b"secret"),
        ("accesslog", "-"),
        ("accesslog", False),
        ("accesslog", logging.getLogger("access")),
        ("errorlog", Path("error.log")),
        ("errorlog", None),
        ("logger_class", Logger),
        ("logger_class", partial(Logger)),
        ("logconfig_dict", {"version": 1}),
        ("verify_mode", 2),
        ("verify_mode", ssl.CERT_REQUIRED),
        ("verify_flags", ssl.VERIFY_X509_STRICT),
        ("umask", 0o22),
    ],
)
def test_values_that_work_are_not_refused(name: str, value: Any) -> None:
    """Whether or not Hypercorn's annotations say so."""
    settings_of(Config.from_mapping({name: value}))


ARGUMENTS = {
    "--cert-reqs": "2",
    "--config": "python:trio_httptrack.config",
    "--verify-mode": "CERT_REQUIRED",
}


def options() -> list[tuple[str, bool]]:
    """Those of the command, and whether each has an argument."""
    ended = subprocess.run(
        [sys.executable, "-m", "hypercorn", "--help"], capture_output=True, text=True, check=True
    )
    # Python 3.13 writes the argument once, behind the last name.
    option = r"^  (?:-\w(?: \w+)?, )?(--[\w-]+)(?:, --[\w-]+)*( [A-Z_]+)?"
    found = re.findall(option, ended.stdout, re.MULTILINE)
    return [
        (name, bool(argument))
        for name, argument in found
        if name not in ("--help", "--quic-bind")  # which is refused in any case
    ]


def test_values_that_the_command_sets_are_not_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of them alone, so that what it leaves to others is what they are without it."""
    configs: list[Config] = []
    monkeypatch.setattr(hypercorn.__main__, "run", configs.append)
    all_options = options()
    for name, has_argument in all_options:
        argument = [ARGUMENTS.get(name, "5")] if has_argument else []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some are deprecated
            hypercorn.__main__.main([name, *argument, "module:app"])
        settings_of(configs[-1])
    assert len(all_options) == (36 if OLD_HYPERCORN else 37)


def test_each_exception_is_a_setting() -> None:
    """Of each supported Hypercorn."""
    assert set(filter(is_hypercorn_setting, OVERRIDES)) == set(OVERRIDES)


def test_settings_of_a_later_hypercorn_are_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its annotation may be an unknown one."""
    monkeypatch.setitem(Config.__annotations__, "quite_new", "tuple[int, ...]")
    settings_of(Config.from_mapping(quite_new=(1, 2)))
