from __future__ import annotations

from pathlib import Path

import pytest

from .support import CERT


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a key and a certificate for localhost."""
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    CERT.private_key_and_cert_chain_pem.write_to_path(str(path))
    return path
