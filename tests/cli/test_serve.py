import re
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import UsageError
from gateway.cli.serve import build_config
from gateway.config import ConfigError
from gateway.uri import MemoryUri, parse_nbd_uri

FILE = """
[[listen]]
uri = "nbd://127.0.0.1:1"
max-connections = 5
[upstream.disks]
uri = "nbd://10.0.0.5"
[log]
level = "error"
format = "json"
"""


def test_upstream_alone() -> None:
    config = build_config("memory:1G")
    assert [str(listen.uri) for listen in config.listen] == ["nbd://127.0.0.1:10810"]
    assert config.upstream["main"].uri == MemoryUri(1 << 30)
    assert [(rule.name, rule.upstream) for rule in config.exports] == [("*", "main")]


def test_an_upstream_that_names_an_export() -> None:
    config = build_config("nbd://host/disk0")
    for name in ("disk0", ""):
        route = config.route(name)
        assert route is not None
        assert (route.upstream, route.upstream_name) == ("main", "disk0")
    assert config.route("other") is None


def test_all_options() -> None:
    config = build_config(
        "nbd://h",
        listen=("nbd://127.0.0.1", "nbd+unix:///?socket=/s"),
        listener={"max-connections": 3, "socket-mode": "0660"},
        drain_seconds=0,
        log_level="debug",
        log_format="json",
    )
    tcp, unix = config.listen
    assert (tcp.uri, unix.uri) == (
        parse_nbd_uri("nbd://127.0.0.1"),
        parse_nbd_uri("nbd+unix:///?socket=/s"),
    )
    assert tcp.max_connections == unix.max_connections == 3
    assert (tcp.socket_mode, unix.socket_mode) == (None, 0o660)
    assert (config.drain_seconds, config.log.level, config.log.format) == (0, "debug", "json")


def test_certificates_mean_tls() -> None:
    config = build_config("nbd://h", listener={"certificates": "/pki", "verify-client": False})
    [listen] = config.listen
    assert (listen.tls_mode, listen.certificates) == ("require", Path("/pki"))
    assert listen.verify_client is False


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.toml"
    path.write_text(FILE)
    return path


def test_file(file: Path) -> None:
    config = build_config(None, config=file)
    assert list(config.upstream) == ["disks"]
    assert config.listen[0].max_connections == 5
    assert (config.drain_seconds, config.log.level, config.log.format) == (30, "error", "json")


def test_options_beside_a_file(file: Path) -> None:
    config = build_config(None, config=file, drain_seconds=2, log_level="debug")
    assert list(config.upstream) == ["disks"]
    assert (config.drain_seconds, config.log.level, config.log.format) == (2, "debug", "json")
    assert build_config(None, config=file, log_format="console").log.format == "console"


@pytest.mark.parametrize(
    ("upstream", "options", "expected"),
    [
        (None, {}, "serve needs to know which server"),
        (
            "nbd://h",
            {"config": Path("f.toml")},
            "takes either UPSTREAM (nbd://h) or --config (f.toml)",
        ),
        ("", {"config": Path("f.toml")}, "takes either UPSTREAM"),
        (
            None,
            {"config": Path("f.toml"), "listen": ("nbd://h",)},
            "--listen cannot be used with --config",
        ),
        (
            None,
            {"config": Path("f.toml"), "listener": {"max-connections": 1}},
            "--max-connections cannot be used",
        ),
        (None, {"config": Path("f.toml"), "listener": {"psk": "k"}}, "--tls-psk cannot be used"),
    ],
)
def test_usage(upstream: str | None, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=re.escape(expected)):
        build_config(upstream, **options)


@pytest.mark.parametrize(
    ("upstream", "options", "expected"),
    [
        ("", {}, 'UPSTREAM: "": expected an NBD URI such as'),
        ("disk.img", {}, 'UPSTREAM: "disk.img": expected an NBD URI such as'),
        ("memory:x", {}, 'UPSTREAM: "memory:x": expected a size'),
        (
            "nbd://h?tls-type=x509",
            {},
            'UPSTREAM: "nbd://h?tls-type=x509": "tls-type" goes with nbds:',
        ),
        (
            "nbd://h",
            {"listener": {"tls": "allow"}},
            '--tls: TLS needs --tls-certificates "DIRECTORY", or --tls-psk "FILE" (',
        ),
        (
            "nbd://h",
            {"listener": {"verify-client": True}},
            '--tls-verify-client: this is for TLS: add --tls "require", or "allow"',
        ),
        (
            "nbd://h",
            {"listen": ("nbds://a",), "listener": {"tls": "off"}},
            '--tls: --tls "off" contradicts nbds://a',
        ),
        ("nbd://127.0.0.1:10810", {}, "UPSTREAM: the gateway itself listens there (--listen)"),
        ("nbd://h", {"listen": ("x",)}, '--listen: "x": expected an NBD URI'),
        (
            "nbd://h",
            {"listen": ("nbd://a", "nbd://a")},
            "--listen: nbd://a:10809 is listened on already",
        ),
        (
            "nbd://h",
            {"listener": {"max-connections": 0}},
            "--max-connections: expected 1 or more, got 0",
        ),
        ("nbd://h", {"drain_seconds": -1.0}, "--drain-seconds: expected 0 or more, got -1"),
        (
            "nbd://h",
            {"listener": {"socket-mode": "0660"}},
            "--socket-mode: only a Unix socket has this",
        ),
        ("nbd://h", {"log_level": "x"}, "--log-level: expected"),
        ("nbd://h", {"log_format": "x"}, "--log-format: expected"),
    ],
)
def test_problems_name_the_argument(upstream: str, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(upstream, **options)
    [problem] = caught.value.problems
    assert str(problem).startswith(expected)
    assert not problem.file


def test_a_bad_option_beside_a_file(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--drain-seconds: expected 0 or more"):
        build_config(None, config=file, drain_seconds=-1)


def test_problems_of_a_file_name_its_lines(file: Path) -> None:
    file.write_text(FILE.replace("json", "xml"))
    with pytest.raises(
        ConfigError, match=r'gateway.toml:9: log.format: expected "console" or "json"'
    ):
        build_config(None, config=file)
