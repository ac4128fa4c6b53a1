from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from tests.tls.handshakes import directory


@pytest.fixture(scope="session")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def other_ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def server_leaf(ca: trustme.CA) -> trustme.LeafCert:
    return ca.issue_cert("localhost", "server.example", "127.0.0.1", "::1")


@pytest.fixture(scope="session")
def client_leaf(ca: trustme.CA) -> trustme.LeafCert:
    return ca.issue_cert("joe@example.org", common_name="joe")


@pytest.fixture
def server_dir(tmp_path: Path, ca: trustme.CA, server_leaf: trustme.LeafCert) -> Path:
    return directory(tmp_path / "server", ca, server=server_leaf)


@pytest.fixture
def client_dir(tmp_path: Path, ca: trustme.CA, client_leaf: trustme.LeafCert) -> Path:
    return directory(tmp_path / "client", ca, client=client_leaf)


@pytest.fixture
def anonymous_dir(tmp_path: Path, ca: trustme.CA) -> Path:
    """A client's, without a certificate of its own."""
    return directory(tmp_path / "anonymous", ca)
