"""TLS for both sides, with the server's own certificate or one that is created for the tests."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from copy import copy
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from hypercorn.config import Config

from .._extra import require_extra


class Tls:
    """The SSL contexts of a server and of the clients that trust it."""

    def __init__(self, config: Config) -> None:
        with TemporaryDirectory() as folder:
            if not config.ssl_enabled:
                config = copy(config)
                config.certfile = config.keyfile = str(Path(folder, "localhost.pem"))
                Path(config.certfile).write_bytes(_certificate())
            server = config.create_ssl_context()
            assert server is not None
            assert config.certfile is not None
            self.server = server
            self._trusted = Path(config.certfile).read_text(encoding="utf-8")

    def client(self, alpn: Sequence[str] = ()) -> ssl.SSLContext:
        """Return a context that trusts only the server's certificate, under any host name."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=self._trusted)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context


@cache
def _certificate() -> bytes:
    with require_extra("TLS without a certfile in the config", extra="testing"):
        import trustme
    pem = trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem
    return pem.bytes()
