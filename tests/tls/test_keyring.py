"""Credentials of a configuration, and what becomes of them when files change while the gateway runs."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
import structlog
import trio
import trio.testing
import trustme

from gateway.config import Upstream, parse
from gateway.tls.keyring import Keyring, KeyringError
from gateway.uri import parse_nbd_uri
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


@pytest.mark.parametrize("role", ["server", "client"])
def test_a_key_that_anybody_can_read_is_warned_of(
    tmp_path: Path, ca: trustme.CA, role: str
) -> None:
    leaf = ca.issue_cert("localhost")
    folder = directory(tmp_path / "pki", ca, server=leaf, client=leaf)
    key = folder / f"{role}-key.pem"
    ring = keyring(folder) if role == "server" else secure(folder)[0]
    for mode, warned in ((0o644, True), (0o640, False), (0o602, True), (0o600, False)):
        key.chmod(mode)
        with structlog.testing.capture_logs() as lines:
            ring.reload(structlog.get_logger())
        said = [line["what"] for line in lines if line["event"] == "key"]
        assert len(said) == warned
        assert all(f"{key}: anybody" in text and f"(mode {mode:04o})" in text for text in said)


async def test_it_is_warned_of_from_the_start(
    pki: Path, autojump_clock: trio.testing.MockClock
) -> None:
    (pki / "server-key.pem").chmod(0o644)
    with structlog.testing.capture_logs() as lines, trio.move_on_after(0.1):
        await keyring(pki).watch(structlog.get_logger())
    assert "key" in [line["event"] for line in lines]


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyringError, match=r"^listener nbds://127\.0\.0\.1:10809: .*nothing"):
        keyring(tmp_path / "nothing")


# --- Of servers that exports are switched to


SECURE = """
[[listen]]
uri = "nbd://127.0.0.1"
[upstream.m]
uri = "nbds://localhost:1"
certificates = "{pki}"
"""


def secure(pki: Path, before: Keyring | None = None) -> tuple[Keyring, Upstream]:
    config = parse(SECURE.format(pki=pki), "test")
    return Keyring(config, before), config.upstream["m"]


def test_what_an_export_is_switched_to_has_new_credentials_when_the_files_change(
    pki: Path, ca: trustme.CA
) -> None:
    ring, upstream = secure(pki)
    there = ring.elsewhere(parse_nbd_uri("nbds://localhost:2"), upstream)
    first = there.current
    (pki / "ca-crl.pem").write_bytes(crl_of(ca))
    assert reloaded(ring) == [("info", "credentials exchanged")] * 2
    assert there.current is not first
    after, _upstream = secure(pki, ring)
    ring.become(after, structlog.get_logger())
    second = there.current
    (pki / "ca-crl.pem").write_bytes(crl_of(ca))
    reloaded(ring)
    assert there.current is not second


def test_one_server_has_one_ring_until_nobody_needs_it(pki: Path) -> None:
    ring, upstream = secure(pki)
    [own] = ring.upstreams["m"]
    assert ring.elsewhere(parse_nbd_uri("nbds://localhost:1"), upstream) is own
    uri = parse_nbd_uri("nbds://localhost:2")
    there = ring.elsewhere(uri, upstream)
    assert ring.elsewhere(uri, upstream) is there
    assert [whose for whose, _ring in ring._rings()] == ["m", str(uri)]
    del there
    assert [whose for whose, _ring in ring._rings()] == ["m"]


def test_credentials_of_elsewhere_that_cannot_be_loaded(pki: Path, tmp_path: Path) -> None:
    ring, upstream = secure(pki)
    elsewhere = upstream.model_copy(update={"certificates": tmp_path / "nothing"})
    with pytest.raises(KeyringError, match=r"^nbds://localhost:2: .*nothing"):
        ring.elsewhere(parse_nbd_uri("nbds://localhost:2"), elsewhere)


SEVERAL = """
[[listen]]
uri = "nbd://127.0.0.1"
[upstream.m]
uris = [{uris}]
certificates = "{pki}"
"""


def test_each_of_several_servers_has_credentials_for_its_own_name(pki: Path) -> None:
    a, b, c = "nbds://localhost:1", "nbds://localhost:2?tls-hostname=b.example", "nbds://[::1]"

    def several(*uris: str, before: Keyring | None = None) -> Keyring:
        text = SEVERAL.format(uris=", ".join(f'"{uri}"' for uri in uris), pki=pki)
        return Keyring(parse(text, "test"), before)

    ring = several(a, b)
    first, second = ring.upstreams["m"]
    assert [each.current._hostname for each in (first, second)] == ["localhost", "b.example"]
    assert [whose for whose, _ring in ring._rings()] == [
        f"m ({parse_nbd_uri(uri)})" for uri in (a, b)
    ]
    after = several(c, b, before=ring)  # what is said of them as before is not loaded again
    assert after.upstreams["m"][0] not in (first, second)
    assert after.upstreams["m"][1] is second
    with pytest.raises(KeyringError, match=r"upstream m \(nbds\+unix:.*\): .* has no host"):
        several(a, "nbds+unix:///?socket=s")
