"""Which certificates of a fleet have ended: `check` says so, and the log of a gateway that runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway.cli import main
from gateway.tls.pki import make_pki

CONFIG = """\
[[listen]]
uri = "nbd://127.0.0.1:0"
[upstream.u]
uri = "nbd://192.0.2.1"
[fleet]
etcd = "https://127.0.0.1:1"
name = "a"
address = "nbds://127.0.0.1:1"
certificates = "{at}"
etcd-certificates = "{at}"
"""


def written(at: Path, *, days_ago: int, days: int) -> None:
    made = datetime.now(UTC) - timedelta(days=days_ago)
    for name, content in make_pki([], [], [], days=days, now=made).items():
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        (at / name).write_bytes(content)
        (at / name).chmod(0o600)


@pytest.mark.parametrize(
    ("days_ago", "days", "said"),
    [(10, 2, "has expired on"), (0, 20, "expires in 19 days"), (0, 400, "")],
)
def test_check_says_which_certificates_end(
    days_ago: int, days: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, days_ago=days_ago, days=days)
    config = tmp_path / "g.toml"
    config.write_text(CONFIG.format(at=tmp_path))
    assert main(["check", str(config)]) == 0
    shown = capsys.readouterr()
    lines = [line for line in (shown.out + shown.err).splitlines() if "cert.pem" in line]
    for key, role in (
        ("certificates", "server"),
        ("certificates", "client"),
        ("etcd-certificates", "client"),
    ):
        found = [line for line in lines if f"fleet.{key}: {tmp_path}/{role}-cert.pem" in line]
        assert len(found) == bool(said)
        assert all(said in line for line in found)
