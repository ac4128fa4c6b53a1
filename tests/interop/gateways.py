"""The gateway as its users start it, or one of two stand-ins that tell whether a *test* is right.

INTEROP_VIA=direct   clients talk to the server itself
INTEROP_VIA=socat    a blind relay: everything must pass that does not need the gateway's repairs
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .clients import OPENS, SYSTEM_PYTHON
from .processes import Finished, Process, attempt, listening
from .servers import Daemon, Upstream, free_port, unix_uri, with_export

MODE = os.environ.get("INTEROP_VIA", "gateway")


class Gateway:
    """One running gateway and where clients reach it."""

    def __init__(self, base: str, process: Process | Daemon) -> None:
        self.base = base
        self.process = process

    def uri(self, export: str = "") -> str:
        return with_export(self.base, export)

    def drain(self) -> None:
        """SIGTERM, and then what every orderly end must look like."""
        if MODE == "direct" or not isinstance(self.process, Process):
            return
        already = not self.process.running
        status = self.process.stop()
        output = self.process.output
        print(f"--- {' '.join(self.process.command)}\n{output}")
        if MODE == "gateway":
            assert not already, f"the gateway ended by itself with status {status}"
            assert status == 0, f"exit status {status} after SIGTERM"
            assert "Traceback" not in output


class Configured:
    """A gateway with a file of its own, of which `text` is what comes after [[listen]] and [control]."""

    def __init__(self, workdir: Path, text: str, *, base: str = "") -> None:
        self.base = base or unix_uri(workdir / "g.sock")
        self.socket = workdir / "control"
        self.config = workdir / "g.toml"
        self.write(text)
        self.process = self.started()
        self.process.ready_when(lambda: listening(self.base), "the gateway listens")

    def started(self) -> Process:
        """Start it."""
        return Process(sys.executable, "-m", "gateway", "serve", "--config", self.config)

    def write(self, text: str) -> None:
        """Write the configuration, which the gateway takes when it is told to."""
        head = f'[[listen]]\nuri = "{self.base}"\n[control]\nsocket = "{self.socket}"\n'
        self.config.write_text(head + text)

    def uri(self, export: str = "") -> str:
        """Where a client finds an export."""
        return with_export(self.base, export)

    def client(self, export: str = "") -> Process:
        """A client that opens it, and says how large it is."""
        return Process(SYSTEM_PYTHON, "-c", OPENS, self.uri(export))

    def asked(self, export: str = "") -> Finished:
        """What one was told."""
        return attempt(SYSTEM_PYTHON, "-c", OPENS, self.uri(export))

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self.process.output

    @property
    def sessions(self) -> int:
        """How many clients are in transmission."""
        return self.log.count("session begins") - self.log.count("session ended")

    def end(self) -> str:
        """End it in order, and give what it has said."""
        already = not self.process.running
        status = self.process.stop()
        assert (already, status) == (False, 0), self.log
        for word in ("Traceback", "internal error"):
            assert word not in self.log, self.log
        return self.log


class Before(Configured):
    """A gateway before one upstream, whose keys are `upstream`; `more` is the rest of its file."""

    def __init__(self, workdir: Path, upstream: str, more: str = "", *, base: str = "") -> None:
        super().__init__(workdir, disks(upstream, more), base=base)


def disks(upstream: str, more: str = "") -> str:
    """Give the text for an upstream of these keys."""
    return f"[upstream.disks]\n{upstream}\n{more}\n"


class Gateways:
    """Starts gateways for one test; each must still be alive after it and end in order."""

    def __init__(self, workdir: Path) -> None:
        self.workdir = workdir
        self._started: list[Gateway] = []

    # Repairs that a test may rely on: nobody else makes them.
    repairs = MODE == "gateway"

    def __call__(self, upstream: Upstream) -> str:
        """The URI of the upstream's main export, now through a gateway of its own."""
        export = unquote(urlsplit(upstream.uri).path[1:])
        return self.before(upstream).uri(export)

    def before(self, upstream: Upstream, *, tcp: bool = False, survives: bool = True) -> Gateway:
        """A gateway in front of all exports of `upstream`; its sessions end with their links unless they are to
        live on.
        """
        if MODE == "direct":
            return self._keep(Gateway(upstream.named(""), upstream.process))
        listen = self._listen(tcp)
        if MODE == "socat":
            process = Process("socat", socat_listen(listen), socat_connect(upstream.uri))
        elif survives:
            process = self._serve(upstream.named(""), "--listen", listen)
        else:
            lines = ["[[listen]]", f'uri = "{listen}"', "[upstream.disks]"]
            lines += [f'uri = "{upstream.named("")}"', "reconnect-seconds = 0"]
            lines += ["[[export]]", 'name = "*"', 'upstream = "disks"']
            config = self.workdir / "gateway.toml"
            config.write_text("\n".join(lines) + "\n")
            process = self._serve("--config", str(config))
        return self._ready(listen, process)

    def configured(self, upstream: Upstream, exports: dict[str, str]) -> Gateway:
        """A gateway that shows exports under other names: {ours: the upstream's}."""
        assert MODE == "gateway", "only the gateway renames"
        listen = self._listen(tcp=False)
        lines = [
            "[[listen]]",
            f'uri = "{listen}"',
            "[upstream.disks]",
            f'uri = "{upstream.named("")}"',
        ]
        for name, theirs in exports.items():
            lines += [
                "[[export]]",
                f'name = "{name}"',
                'upstream = "disks"',
                f'upstream-name = "{theirs}"',
                f'description = "{name} of the test"',
            ]
        config = self.workdir / "gateway.toml"
        config.write_text("\n".join(lines) + "\n")
        return self._ready(listen, self._serve("--config", str(config)))

    def _serve(self, *arguments: str) -> Process:
        return Process(sys.executable, "-m", "gateway", "serve", *arguments)

    def _listen(self, tcp: bool) -> str:
        if tcp:
            return f"nbd://127.0.0.1:{free_port()}"
        return unix_uri(self.workdir / f"gateway{len(self._started)}")

    def _ready(self, listen: str, process: Process) -> Gateway:
        gateway = self._keep(Gateway(listen, process))
        process.ready_when(lambda: listening(listen), f"the gateway listens at {listen}")
        return gateway

    def _keep(self, gateway: Gateway) -> Gateway:
        self._started.append(gateway)
        return gateway

    def stop(self) -> None:
        for gateway in self._started:
            gateway.drain()

    def forget(self, gateway: Gateway) -> None:
        """The test itself has ended this one, and has looked how."""
        self._started.remove(gateway)


def socat_listen(uri: str) -> str:
    parts = urlsplit(uri)
    if parts.port:
        return f"TCP-LISTEN:{parts.port},bind=127.0.0.1,reuseaddr,fork"
    return f"UNIX-LISTEN:{parts.query.removeprefix('socket=')},fork"


def socat_connect(uri: str) -> str:
    parts = urlsplit(uri)
    if parts.port:
        return f"TCP:127.0.0.1:{parts.port}"
    return f"UNIX-CONNECT:{parts.query.removeprefix('socket=')}"
