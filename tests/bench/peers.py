"""How each contestant is started, all in front of one upstream, all on the loopback's TCP.

A contestant for a later row (another framing) is one more entry of COMMANDS. What follows a "+"
in its name is only its variant: "gateway+tls" stands in the gateway's column.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from tests.bench.processes import Broken, Child, free_port, run_tool
from tests.bench.rows import (
    DIRECT,
    DIRECT_TLS,
    EXTENDED_CLIENT,
    FAN_OUT,
    FAST,
    GATEWAY,
    GATEWAY_TLS,
    HAPROXY,
    NBDKIT,
    NBDKIT_TLS,
    ONE_CONNECTION,
    POLICIES,
    PURE,
    QEMU_NBD,
    QEMU_NBD_TLS,
    SIMPLE_UPSTREAM,
    TLS,
)

ROOT = Path(__file__).resolve().parents[2]
GATEWAY_VARIABLE = "BENCH_GATEWAY"
"""A stand-in for the gateway's own command, with {upstream}, {listen} (URIs) and {port} in it."""

PUMP_VARIABLE = "NBD_GATEWAY_PUMP"
_NO_CACHE = shutil.ignore_patterns("__pycache__")
NO_VARIABLES: Mapping[str, str] = MappingProxyType({})

_LISTEN = "nbd://127.0.0.1:{port}"
_FILL = "--name=fill --ioengine=nbd --rw=write --bs=1m --iodepth=8 --size=1g"
_FILL_SECONDS = 120.0
SLOW_READ_MS = 2
"""Long beside what the gateway takes for a request, and short enough that a second has many."""
_HAPROXY_CONFIG = """\
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
listen nbd
    bind 127.0.0.1:{port}
    server upstream {upstream}
"""


_TEN_POLICIES = """\
listen = [ {{ uri = "{listen}" }} ]
upstream.main.uri = "{upstream}"
[[export]]
name = ""
upstream = "main"
policies = [
    {{ use = "limit", connections = 1000, in-flight = 128 }},
    {{ use = "blocksize", maximum = "32M" }},
]
[[rule]]
who = {{ network = "127.0.0.0/8" }}
policies = [
    {{ use = "protect", ranges = ["1023M+1M"] }},
    {{ use = "commands", deny = ["TRIM"], longest-request = "8M" }},
    {{ use = "contexts", allow = ["base:allocation"] }},
    {{ use = "flags", mask = ["CAN_MULTI_CONN"] }},
    {{ use = "exports", allow = [""] }},
    {{ use = "zero", how = "notrim" }},
    {{ use = "window", offset = 0 }},
    {{ use = "truncate", round-down = "1M" }},
]
"""
"""They restrict what the load does not do: it must be as fast as without them."""


def gateway_command(upstream: str, port: int, profile: Path | None = None) -> list[str]:
    """The installed gateway of the interpreter that runs us, or the stand-in."""
    script = str(Path(sys.executable).with_name("nbd-gateway"))
    template = os.environ.get(GATEWAY_VARIABLE)
    words = (
        shlex.split(template)
        if template
        else [script, "serve", "{upstream}", "--listen", "{listen}"]
    )
    fields = {"upstream": upstream, "port": port, "listen": _LISTEN.format(port=port)}
    command = [word.format(**fields) for word in words]
    if profile is None:
        return command
    if Path(command[0]).name.startswith("python"):
        command = command[1:]
    return [sys.executable, "-m", "cProfile", "-o", str(profile), *command]


def _gateway(upstream: str, port: int, _: Path) -> list[str]:
    return gateway_command(upstream, port)


def _pure(upstream: str, port: int, directory: Path) -> list[str]:
    return ["env", f"{PUMP_VARIABLE}=0", *_gateway(upstream, port, directory)]


def _gateway_with_policies(upstream: str, port: int, directory: Path) -> list[str]:
    config = directory / f"policies-{port}.toml"
    config.write_text(_TEN_POLICIES.format(listen=_LISTEN.format(port=port), upstream=upstream))
    script = str(Path(sys.executable).with_name("nbd-gateway"))
    return [script, "serve", "--config", str(config)]


def _fan_out(upstream: str, port: int, directory: Path) -> list[str]:
    config = directory / f"fan-out-{port}.toml"
    config.write_text(
        f'listen = [ {{ uri = "{_LISTEN.format(port=port)}" }} ]\n'
        f'upstream.main = {{ uri = "{upstream}", connections = 4, connections-required = true }}\n'
    )
    script = str(Path(sys.executable).with_name("nbd-gateway"))
    return [script, "serve", "--config", str(config)]


def _nbdkit(upstream: str, port: int, _: Path) -> list[str]:
    # shared=false is its default: one upstream connection for each client, as ours.
    return ["nbdkit", "-f", "-i", "127.0.0.1", "-p", str(port), "nbd", f"uri={upstream}"]


def _qemu_nbd(upstream: str, port: int, _: Path) -> list[str]:
    # -t: stay after the first client. -e 64: as many clients, and MULTI_CONN offered.
    return ["qemu-nbd", "-f", "raw", "-t", "-e", "64", "-b", "127.0.0.1", "-p", str(port), upstream]


def _haproxy(upstream: str, port: int, directory: Path) -> list[str]:
    config = directory / f"haproxy-{port}.cfg"
    config.write_text(_HAPROXY_CONFIG.format(port=port, upstream=upstream.removeprefix("nbd://")))
    return ["haproxy", "-db", "-f", str(config)]


def _pki(directory: Path) -> Path:
    """Certificates for all, made once, where libnbd looks for them if `directory` is the user's home: fio
    cannot say another place.
    """
    pki = directory / ".pki" / "libnbd"
    if not pki.exists():
        pki.parent.mkdir()
        script = str(Path(sys.executable).with_name("nbd-gateway"))
        run_tool([script, "pki", "init", str(pki)], _FILL_SECONDS)
    return pki


def _gateway_tls(upstream: str, port: int, directory: Path) -> list[str]:
    # Clients need no certificate from nbdkit by default, so here neither.
    secure = ["--tls-certificates", str(_pki(directory)), "--no-tls-verify-client"]
    return [*_gateway(upstream, port, directory), *secure]


def _nbdkit_tls(upstream: str, port: int, directory: Path) -> list[str]:
    program, *arguments = _nbdkit(upstream, port, directory)
    return [program, *_nbdkit_certificates(directory), *arguments]


def _nbdkit_certificates(directory: Path) -> tuple[str, ...]:
    return ("--tls=on", f"--tls-certificates={_pki(directory)}")


def _qemu_nbd_tls(upstream: str, port: int, directory: Path) -> list[str]:
    program, *arguments = _qemu_nbd(upstream, port, directory)
    credentials = f"tls-creds-x509,id=t,endpoint=server,dir={_pki(directory)},verify-peer=off"
    return [program, "--object", credentials, "--tls-creds", "t", *arguments]


COMMANDS: dict[str, Callable[[str, int, Path], list[str]]] = {
    GATEWAY: _gateway,
    PURE: _pure,
    NBDKIT: _nbdkit,
    QEMU_NBD: _qemu_nbd,
    HAPROXY: _haproxy,
    FAST: _gateway,
    EXTENDED_CLIENT: _gateway,
    SIMPLE_UPSTREAM: _gateway,
    POLICIES: _gateway_with_policies,
    ONE_CONNECTION: _gateway,
    FAN_OUT: _fan_out,
    GATEWAY_TLS: _gateway_tls,
    NBDKIT_TLS: _nbdkit_tls,
    QEMU_NBD_TLS: _qemu_nbd_tls,
}


class Stage:
    """The upstream and every contestant that has been asked for so far."""

    def __init__(self, directory: Path, children: contextlib.ExitStack) -> None:
        self._directory = directory
        self._children = children
        self._standing: dict[str, Child] = {}
        self.upstream = self._filled_server()
        self._simple_upstream: Child | None = None
        self._slow_upstream: Child | None = None

    def uri(self, name: str) -> str:
        """Where a contestant listens; starts it, also again if it died."""
        if not self.upstream.running:
            self._replace_upstream()
        if name == DIRECT:
            return self.upstream.uri
        child = self._standing.get(name)
        if child is None or not child.running:
            child = self._standing[name] = self._begun(name)
        return self._secure_uri(child) if name.endswith(TLS) else child.uri

    def _begun(self, name: str) -> Child:
        if name == DIRECT_TLS:
            return self._filled_server(*_nbdkit_certificates(self._directory))
        if name == SIMPLE_UPSTREAM:
            upstream = self.simple_upstream
        elif name in (ONE_CONNECTION, FAN_OUT):
            upstream = self.slow_upstream
        else:
            upstream = self.upstream
        return self.start(name, upstream.uri)

    def _secure_uri(self, child: Child) -> str:
        return f"nbds://127.0.0.1:{child.port}"

    @property
    def home(self) -> Path:
        """The home of clients over TLS."""
        return self._directory

    @property
    def simple_upstream(self) -> Child:
        """The same disk behind a server without structured replies."""
        if self._simple_upstream is None or not self._simple_upstream.running:
            self._simple_upstream = self._filled_server("--no-sr")
        return self._simple_upstream

    @property
    def slow_upstream(self) -> Child:
        """A server that does one request of a connection at a time, each of which takes 2 ms."""
        if self._slow_upstream is None or not self._slow_upstream.running:
            self._slow_upstream = self.memory_server(
                "-t", "1", "--filter=delay", after=(f"rdelay={SLOW_READ_MS}ms",)
            )
        return self._slow_upstream

    def pid(self, name: str) -> int | None:
        """The process of a contestant that was asked for; none, where there is none between."""
        child = self._standing.get(name)
        return None if child is None else child.pid

    def use(self, name: str, child: Child) -> None:
        """Takes a child that was started otherwise for a contestant."""
        self._standing[name] = child

    def start(
        self, name: str, upstream: str, environment: Mapping[str, str] = NO_VARIABLES
    ) -> Child:
        """A contestant of its own for one measurement."""

        def command(port: int) -> list[str]:
            words = COMMANDS[name](upstream, port, self._directory)
            return ["env", *map("=".join, environment.items()), *words] if environment else words

        return self.launch(name, command)

    def memory_server(self, *options: str, after: tuple[str, ...] = ()) -> Child:
        """nbdkit with one gibibyte of memory."""
        return self.launch(
            "upstream",
            lambda port: [
                *("nbdkit", "-f", "-i", "127.0.0.1", "-p", str(port)),
                *options,
                *("memory", "1G", *after),
            ],
        )

    def modules(self, *, compiled: bool) -> Mapping[str, str]:
        """The variables with which the gateway's own modules are found as they are once they are installed, or
        as they are in a fresh checkout; whatever this environment says of .pyc files.
        """
        place = self._directory / ("compiled" if compiled else "fresh")
        if not place.exists():
            for package in ("gateway", "policies"):
                shutil.copytree(ROOT / package, place / package, ignore=_NO_CACHE)
            if compiled:
                run_tool([sys.executable, "-m", "compileall", "-q", str(place)], _FILL_SECONDS)
        return {"PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"}

    def launch(self, name: str, command: Callable[[int], list[str]]) -> Child:
        """Starts a child on a free port and sees to its end."""
        port = free_port()
        try:
            child = Child(name, command(port), port, self._directory / f"{name}-{port}.log")
        except FileNotFoundError as error:
            raise Broken(f"{name}: there is no program {error.filename}") from None
        self._children.callback(child.stop)
        return child

    def _filled_server(self, *options: str) -> Child:
        # nbdkit's memory keeps no page for what was never written: it reads as zeros without touching
        # memory, and nbdcopy skips it as a hole. fio's buffers are random.
        server = self.memory_server(*options)
        run_tool(["fio", *_FILL.split(), f"--uri={server.uri}"], _FILL_SECONDS)
        return server

    def _replace_upstream(self) -> None:
        # Everyone who stood before the dead one goes with it: qemu-nbd never dials again.
        print(f"bench: the upstream ended: {self.upstream.last_words()}", file=sys.stderr)
        for child in self._standing.values():
            child.stop()
        self._standing.clear()
        self.upstream = self._filled_server()


@contextlib.contextmanager
def stage() -> Iterator[Stage]:
    """A stage that is empty again afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="nbd-bench-") as directory,
        contextlib.ExitStack() as children,
    ):
        yield Stage(Path(directory), children)
