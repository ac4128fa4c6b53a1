"""probe, conform, explain: what they ask, for how long, and what of an answer reaches the terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from gateway.admin.control import ControlAnswer, ControlSocket
from gateway.cli import main
from gateway.embedded import PERSONALITIES, Faults, MemoryDisk, Request, Server
from gateway.protocol.errors import Refusal
from gateway.wire import transmission
from gateway.wire.constants import Cmd, Errno, Rep
from gateway.wire.handshake import ListedExport
from gateway.wire.limits import MIB
from tests.embedded.peers import Bytes, listening

VERBS = ("probe", "conform", "explain")

Capture = pytest.CaptureFixture[str]

COMMANDS = "\x1b[2J\x9b31m\x07\r[/red][link=x]\u202e\n"
"""What a terminal obeys (ECMA-48, in both of its spellings), what rich does, and what forges a line."""


def command(verb: str, uri: str, workdir: Path, *arguments: str) -> list[str]:
    """The command line that asks the server at a URI."""
    if verb == "explain":
        config = workdir / "explain.toml"
        config.write_text(
            f'[[listen]]\nuri = "nbd://127.0.0.1:0"\n[upstream.disks]\nuri = "{uri}"\n'
        )
        return [verb, str(config), *arguments]
    return [verb, uri, *arguments, *(["--destroy"] if verb == "conform" else [])]


async def run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run the program beside the servers of this process, on a terminal in which every table fits."""
    return await trio.run_process(
        [sys.executable, "-m", "gateway", *arguments],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env=os.environ | {"COLUMNS": "1000"},
    )


# --- What a server says does not command the terminal


class Refusing(dict[str, MemoryDisk]):
    """No export of any name, in a server's own words."""

    def __contains__(self, name: object) -> bool:
        raise Refusal(Rep.ERR_UNKNOWN, COMMANDS)


def failing(request: Request, reply: list[bytes]) -> Iterable[bytes]:
    """READs fail, in the server's own words."""
    if request.command != Cmd.READ:
        return reply
    return [transmission.encode_error_chunk(request.cookie, Errno.EIO, COMMANDS)]


def talkative() -> Server:
    contexts = ("base:allocation", f"qemu:dirty-bitmap:{COMMANDS}")
    return Server(
        {"": MemoryDisk(2 * MIB), COMMANDS: MemoryDisk(2 * MIB)},
        replace(PERSONALITIES["plain"], contexts=contexts),
        descriptions={"": COMMANDS},
        faults=Faults(on_reply=failing),
    )


SAYS = {
    "probe": (talkative, ("--list", "--transmit")),
    "conform": (talkative, ()),
    "explain": (talkative, ()),
    "probe, refused": (lambda: Server(Refusing()), ()),
    "conform, refused": (lambda: Server(Refusing()), ()),
    "explain, refused": (lambda: Server(Refusing()), ()),
}


@pytest.mark.real
@pytest.mark.parametrize("what", SAYS)
async def test_what_a_server_says_does_not_command_the_terminal(what: str, workdir: Path) -> None:
    verb = what.partition(",")[0]
    server, arguments = SAYS[what]
    async with listening(server(), workdir) as uri:
        done = await run(*command(verb, uri, workdir, *arguments))
    said = (done.stdout + done.stderr).decode()
    assert not [each for each in said if not each.isprintable() and each != "\n"]
    assert "Traceback" not in said
    assert r"\x1b[2J\x9b31m\x07\r[/red][link=x]\u202e\n" in said


@pytest.mark.real
@pytest.mark.parametrize("verb", ["reload", "losses"])
async def test_nor_does_what_a_gateway_says_of_its_servers(verb: str, workdir: Path) -> None:
    async def answer(_arguments: Mapping[str, object]) -> ControlAnswer:
        return ControlAnswer(ok=True, done=(COMMANDS,), problems=(COMMANDS,))

    control = ControlSocket(workdir / "control")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(control.run, {verb: answer}, nursery, lambda _errno: None)
        done = await run(verb, "--socket", str(workdir / "control"))
        nursery.cancel_scope.cancel()
    await control.aclose()
    said = (done.stdout + done.stderr).decode()
    assert not [each for each in said if not each.isprintable() and each != "\n"]
    assert said.count(r"\x1b[2J\x9b31m\x07\r[/red][link=x]\u202e\n") == 2


@pytest.mark.real
async def test_names_that_nobody_can_ask_for_are_told(workdir: Path) -> None:
    server = Server({"good": MemoryDisk(2 * MIB)})
    listed = [ListedExport(Bytes(b"caf\xe9[red]")), ListedExport("good")]
    server.listed = lambda: listed  # type: ignore[method-assign] # as no server of ours lists
    async with listening(server, workdir) as uri:
        done = await run("probe", "--list", uri)
        as_json = await run("probe", "--list", "--json", uri)
    assert done.returncode == 0
    lines = done.stdout.decode().splitlines()
    assert lines[0].endswith("exports: 1")
    assert lines[1] == (
        "1 more, which nobody can ask for: their names are not UTF-8, or have NUL: caf\\xe9[red]"
    )
    found = json.loads(as_json.stdout)
    assert (found["listed"], found["misnamed"]) == (["good"], ["caf\\xe9[red]"])


# --- An export that is not there


class Withholding(dict[str, MemoryDisk]):
    """One of the exports that it lists is not for us."""

    def __contains__(self, name: object) -> bool:
        if name == "kept":
            raise Refusal(Rep.ERR_POLICY, COMMANDS)
        return super().__contains__(name)


def withholding() -> Server:
    return Server(Withholding({name: MemoryDisk(2 * MIB) for name in ("first", "kept", "last")}))


@pytest.mark.real
@pytest.mark.parametrize("verb", ["probe", "conform"])
async def test_who_names_none_that_is_there_hears_which_ones_are(verb: str, workdir: Path) -> None:
    """qemu-nbd -x, for one, has no default export, which a URI without a name means."""
    async with listening(withholding(), workdir) as uri:
        done = await run(*command(verb, uri, workdir))
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == (
        f"nbd-gateway: {uri}: upstream: INFO was refused with ERR_UNKNOWN: there is no export '';"
        " it lists 'first', 'kept', 'last', of which the URI may name one\n"
    )


@pytest.mark.real
async def test_one_that_is_refused_does_not_hide_the_others(workdir: Path) -> None:
    why = "upstream: INFO was refused with ERR_POLICY: "
    async with listening(withholding(), workdir) as uri:
        done = await run("probe", "--list", "--transmit", uri)
        as_json = await run("probe", "--list", "--json", uri)
    assert (done.returncode, as_json.returncode) == (0, 0)
    lines = done.stdout.decode().splitlines()
    assert [line.strip() for line in lines if line.startswith('"')] == [
        rf'"kept" cannot be had: {why}\x1b[2J\x9b31m\x07\r[/red][link=x]\u202e\n',
        '"first"',
        '"last"',
    ]
    found = json.loads(as_json.stdout)
    assert found["refused"] == [{"name": "kept", "why": why + COMMANDS}]
    assert [each["name"] for each in found["exports"]] == ["first", "last"]
    assert found["listed"] == ["first", "kept", "last"]


# --- How long


@pytest.mark.real
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("as_json", [False, True])
async def test_a_timeout_bounds_all_of_it(verb: str, as_json: bool, workdir: Path) -> None:
    silent = Server({"": MemoryDisk(2 * MIB)}, faults=Faults(stall_after_bytes=0))
    more = ("--json",) if as_json else ()
    async with listening(silent, workdir) as uri:
        done = await run(*command(verb, uri, workdir, "--timeout", "0.2", *more))
    assert done.returncode == 1
    text = "it was not done within 0.2 s, which --timeout allows"
    if as_json and verb != "explain":  # once, and for whom it is
        assert json.loads(done.stdout) == {"uri": uri, "error": f"{uri}: {text}"}
        assert done.stderr == b""
        return
    error = done.stderr.decode()
    assert error.startswith("nbd-gateway: ")
    assert error.endswith(f"{text}\n")
    assert error.count("\n") == 1
    assert done.stdout == b""


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "soon"])
def test_a_timeout_is_a_time(verb: str, timeout: str, tmp_path: Path, capsys: Capture) -> None:
    arguments = command(verb, "memory:2M", tmp_path, f"--timeout={timeout}")
    assert main(arguments) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert "--timeout" in error


@pytest.mark.parametrize("verb", VERBS)
def test_a_timeout_that_is_kept_changes_nothing(verb: str, tmp_path: Path, capsys: Capture) -> None:
    assert main(command(verb, "memory:2M", tmp_path, "--timeout", "600")) == 0
    assert capsys.readouterr().err == ""


# --- Whom


@pytest.mark.parametrize("uri", [f"legacy:{name},size=2M" for name in PERSONALITIES])
def test_embedded_servers_can_be_probed(uri: str, capsys: Capture) -> None:
    status = main(["probe", uri, "--list", "--transmit", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert status == 3 * found["risks_data"]
    assert found["uri"] == uri
    [export] = found["exports"]
    assert (export["size"], export["reading"]["wrong"]) == (2 * MIB, [])


def test_a_file_can_be_probed_and_tried(tmp_path: Path, capsys: Capture) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"x" * 2 * MIB)
    assert main(["probe", f"file:{disk}", "--transmit"]) == 0
    assert disk.read_bytes() == b"x" * 2 * MIB
    assert "16 places, nothing wrong" in capsys.readouterr().out
    assert main(["conform", f"file:{disk}"]) == 2
    assert disk.read_bytes() == b"x" * 2 * MIB
    assert main(["conform", f"file:{disk}", "--destroy"]) == 0
    assert disk.read_bytes() != b"x" * 2 * MIB


@pytest.mark.parametrize(
    ("uri", "status", "why"),
    [
        ("file:missing", 1, "cannot open missing: No such file or directory"),
        ("legacy:foo", 1, "there is no server 'foo' to imitate"),
        ("file:/missing/\udcff", 1, r"/missing/\udcff: No such file"),
        ("nbd://\udcff", 2, r"'\udcff' cannot stand in a URI"),
        ("foo", 2, "expected an NBD URI such as nbd://host:10809"),
    ],
)
@pytest.mark.parametrize("verb", ["probe", "conform"])
def test_what_is_no_server(
    verb: str, uri: str, status: int, why: str, tmp_path: Path, capsys: Capture
) -> None:
    assert main(command(verb, uri, tmp_path)) == status
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert why in error
