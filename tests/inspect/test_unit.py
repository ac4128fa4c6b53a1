"""Units for systemd, as systemd itself reads them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.cli import main
from gateway.config import parse
from gateway.inspect.unit import Installation, NoUnit, service_unit, socket_unit
from tests.interop.processes import attempt

PROGRAM = "/bin/true"
"""systemd looks whether it is there."""

MEMORY = 'upstream.m.uri = "memory:1M"\n'
HERE = Installation((PROGRAM,), Path("/etc/nbd.toml"), "nbd-gateway", None, 252)


def service(text: str, here: Installation = HERE) -> list[str]:
    return service_unit(parse(text + MEMORY, "test"), here).splitlines()


def sockets(text: str) -> list[str]:
    return socket_unit(parse(text + MEMORY, "test"), HERE).splitlines()


def listen(*tables: str) -> str:
    return f"listen = [{', '.join(f'{{ {each} }}' for each in tables)}]\n"


TCP = 'uri = "nbd://0.0.0.0"'
UNIX = 'uri = "nbd+unix:///?socket=/run/nbd/s"'

EXPORT = 'export = [{ name = "x", upstream = "a" }]\n'

CONFIGS = {
    "plain": listen(TCP),
    "Unix sockets": listen(f'{UNIX}, socket-mode = "0660", socket-owner = "daemon:disk"'),
    "both, and a control socket": f'{listen(TCP, UNIX)}control.socket = "/run/nbd/c"\n',
    "every interface": listen('uri = "nbd://[::]:10809"', 'uri = "nbd+vsock://"'),
    "a port for which root is needed": listen('uri = "nbd://127.0.0.1:809", descriptor = "nbd"'),
    "a user": f'user = "daemon"\ngroup = "disk"\n{listen(TCP)}',
    "disks": f'{listen(TCP)}upstream.a.uri = "file:/srv/a b%c.img"\nupstream.b.uri = "file:/srv/b"\n'
    'export = [{ name = "x", upstream = "a", policies = [{ use = "audit", file = "/var/log/nbd/a" }] }]\n',
    "a command": f'{listen(TCP)}upstream.a.command = ["qemu-nbd", "/etc/passwd"]\n{EXPORT}',
    "HTTP": f'{listen(UNIX)}admin.uri = ["http://127.0.0.1:80", "http+unix:///run/a/s"]\n'
    'admin.tokens = "/home/a/tokens"\ncontrol.socket = "/run/nbd/c"\n',
    "relative paths": f'{listen(TCP)}control.socket = "c"\n',
}


@pytest.mark.real
@pytest.mark.parametrize("what", CONFIGS)
@pytest.mark.parametrize("user", [None, "daemon"])
def test_systemd_finds_nothing_wrong_and_hardly_anything_open(
    what: str, user: str | None, tmp_path: Path
) -> None:
    config = parse(CONFIGS[what] + MEMORY, "test")
    here = replace(HERE, user=user, config=Path('/etc/a "b" $c %d;.toml'))
    units = [tmp_path / f"nbd-gateway.{kind}" for kind in ("service", "socket")]
    units[0].write_text(service_unit(config, here))
    units[1].write_text(socket_unit(config, here))
    done = attempt("systemd-analyze", "verify", "--man=no", *units)
    assert (done.status, done.out, done.err) == (0, "", ""), str(done)
    done = attempt("systemd-analyze", "security", "--offline=true", "--no-pager", units[0])
    found = re.search(r"Overall exposure level for nbd-gateway.service: (\S+)", done.out)
    assert found is not None, str(done)
    assert float(found[1]) < 2.0, str(done)


def test_a_reload_is_waited_for_where_systemd_can_wait_for_it() -> None:
    assert "Type=notify" in service(CONFIGS["plain"])
    assert "ExecReload=/bin/kill -HUP $MAINPID" in service(CONFIGS["plain"])
    newer = service(CONFIGS["plain"], replace(HERE, systemd=253))
    assert "Type=notify-reload" in newer
    assert not [line for line in newer if line.startswith("ExecReload")]


@pytest.mark.parametrize(
    ("what", "lines"),
    [
        ("plain", ["DynamicUser=yes", "PrivateUsers=yes", "PrivateTmp=yes", "UMask=0077"]),
        ("plain", ["RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6"]),
        ("Unix sockets", ["RestrictAddressFamilies=AF_UNIX", "PrivateUsers=no"]),
        ("Unix sockets", ["RuntimeDirectory=nbd", "RuntimeDirectoryPreserve=yes"]),
        ("Unix sockets", ["SystemCallFilter=~@resources"]),  # for socket-owner is a chown(2)
        ("both, and a control socket", ["UMask=0022"]),  # or daemon would get in
        ("every interface", ["RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_VSOCK"]),
        ("a port for which root is needed", ["AmbientCapabilities=CAP_NET_BIND_SERVICE"]),
        ("a user", ["User=daemon", "Group=disk"]),
        ("disks", ['ReadWritePaths="-/srv/a b%%c.img" -/srv/b', "LogsDirectory=nbd"]),
        ("a command", ["ReadWritePaths=-/etc/passwd", "KillMode=mixed"]),
        ("HTTP", ["AmbientCapabilities=CAP_NET_BIND_SERVICE", "ProtectHome=read-only"]),
        ("HTTP", ["RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6", "RuntimeDirectory=a nbd"]),
        ("relative paths", [f"WorkingDirectory={Path.cwd()}"]),
    ],
)
def test_a_service_may_do_what_its_configuration_needs(what: str, lines: list[str]) -> None:
    assert not {*lines} - {*service(CONFIGS[what])}


@pytest.mark.parametrize(
    ("path", "is_open"),
    [("/home/a/d", "ProtectHome=read-only"), ("/var/tmp/d", "PrivateTmp=no")],
)
def test_what_is_in_a_place_that_is_closed_opens_it(path: str, is_open: str) -> None:
    assert is_open not in service(CONFIGS["plain"])
    assert is_open in service(f'{listen(TCP)}upstream.a.uri = "file:{path}"\n{EXPORT}')


def test_a_command_is_quoted_as_systemd_reads_it() -> None:
    here = replace(HERE, config=Path('/etc/a "b" $c %d\\e'))
    run = r'ExecStart=/bin/true serve --config "/etc/a \"b\" $$c %%d\\e"'
    assert run in service(CONFIGS["plain"], here)


@pytest.mark.parametrize(
    ("tables", "lines"),
    [
        ([TCP, UNIX], ["ListenStream=0.0.0.0:10809", "ListenStream=/run/nbd/s", "SocketMode=0755"]),
        (['uri = "nbd://[::1]:1"'], ["ListenStream=[::1]:1", "BindIPv6Only=both"]),
        (['uri = "nbd://localhost"'], ["ListenStream=127.0.0.1:10809"]),
        (
            ['uri = "nbd+vsock://2:7"', 'uri = "nbd+vsock://"'],
            ["ListenStream=vsock:2:7", "ListenStream=vsock:2:10809"],
        ),
        (['uri = "nbd+unix:///?socket=%00a"'], ["ListenStream=@a"]),
        (
            [f'{UNIX}, socket-mode = "0660", socket-owner = "daemon:disk"'],
            ["SocketMode=0660", "SocketUser=daemon", "SocketGroup=disk"],
        ),
        ([f'{TCP}, descriptor = "nbd"'], ["FileDescriptorName=nbd"]),
    ],
)
def test_a_socket_unit_listens_where_the_configuration_says(
    tables: list[str], lines: list[str]
) -> None:
    assert not {*lines} - {*sockets(listen(*tables))}


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ([f'{TCP}, descriptor = "a"', UNIX], "one FileDescriptorName= for all its sockets"),
        ([f'{UNIX}, socket-mode = "0660"', 'uri = "nbd+unix:///?socket=t"'], "one SocketMode= and"),
        (['uri = "nbd://gateway.example"'], "an IP address, and not the name of a host"),
        (['uri = "nbd://127.0.0.1:0"'], "port 0 is another one each time"),
    ],
)
def test_a_socket_unit_that_cannot_be_is_refused(tables: list[str], says: str) -> None:
    with pytest.raises(NoUnit, match=says):
        sockets(listen(*tables))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-"], "standard input"),
        (["--name", "a b"], "--name 'a b': expected"),
        (["--name", "../x"], "--name '../x': expected"),
        (["--user", "root\nExecStartPre=/bin/sh"], "expected the name of a user"),
    ],
)
def test_what_systemd_would_take_for_something_else_is_refused(
    capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert main(["unit", *words]) == 2
    assert says in capsys.readouterr().err


def test_the_verb_prints_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gateway.toml").write_text(CONFIGS["plain"] + MEMORY)
    assert main(["unit", "--systemd", "253", "--name", "nbd"]) == 0
    text = capsys.readouterr().out
    assert f"serve --config {tmp_path}/gateway.toml\n" in text
    assert "After=network-online.target nbd.socket\n" in text
    assert main(["unit", "--sockets"]) == 0
    assert "[Socket]\nListenStream=0.0.0.0:10809\n" in capsys.readouterr().out
    Path("gateway.toml").write_text("listen = 3")
    assert main(["unit"]) == 1
    assert "gateway.toml:1: listen" in capsys.readouterr().err
    Path("gateway.toml").write_text(listen('uri = "nbd://h"') + MEMORY)
    assert main(["unit", "--sockets"]) == 1
    assert capsys.readouterr().err.startswith("nbd-gateway: gateway.toml: nbd://h:10809: a socket")
