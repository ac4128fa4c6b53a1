"""Credentials of a configuration, and what becomes of them when files change while the gateway runs."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
import structlog
import trustme

from gateway.config import parse
from gateway.keyring import Keyring, KeyringError
from tests.tls.handshakes import DAY, crl_of, directory

CONFIG = """
[[listen]]
uri = "nbds://127.0.0.1"
certificates = "{pki}"
[upstream.m]
uri = "memory:1M"
"""


@pytest.fixture
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def pki(tmp_path: Path, ca: trustme.CA) -> Path:
    return directory(tmp_path / "pki", ca, server=ca.issue_cert("localhost"), crl=crl_of(ca))


def keyring(pki: Path) -> Keyring:
    return Keyring(parse(CONFIG.format(pki=pki), "test"))


def reloaded(ring: Keyring) -> list[tuple[str, str]]:
    """Level and event of what the log says of a reload."""
    with structlog.testing.capture_logs() as lines:
        ring.reload(structlog.get_logger())
    return [(line["log_level"], line["event"]) for line in lines]


def test_nothing_has_changed(pki: Path) -> None:
    assert reloaded(keyring(pki)) == []


def test_a_list_of_revoked_certificates_that_is_gone_lets_nobody_in(pki: Path) -> None:
    ring = keyring(pki)
    (pki / "ca-crl.pem").unlink()
    assert reloaded(ring) == [("error", "credentials stay as they were")]


def test_what_is_exchanged_for_something_that_has_ended_is_warned_of(
    pki: Path, ca: trustme.CA
) -> None:
    ring = keyring(pki)
    now = dt.datetime.now(dt.UTC)
    (pki / "ca-crl.pem").write_bytes(crl_of(ca, begin=now - 9 * DAY, end=now - DAY))
    assert reloaded(ring) == [("info", "credentials exchanged"), ("warning", "certificate")]


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyringError, match=r"^listener nbds://127\.0\.0\.1:10809: .*nothing"):
        keyring(tmp_path / "nothing")
