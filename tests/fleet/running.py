"""A fleet: gateways as real processes, a real etcd, and a server in the test that notes who wrote what."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trio

from gateway.admin.asking import ControlError, ask
from gateway.admin.control import ControlAnswer
from gateway.embedded.disk import Data, MemoryDisk
from gateway.fleet.answers import EtcdUnavailable
from gateway.fleet.etcd import Etcd
from gateway.protocol.client_role import Refused
from gateway.tls.pki import make_pki
from tests.embedded.peers import BLOCK_SIZE, Client
from tests.fleet.etcds import PASSWORD, PATIENT_SECONDS, Members, free_ports
from tests.fleet.etcds import running as etcd_running
from tests.tools.patience import HANG_SECONDS

HEAD = """\
[[listen]]
uri = "nbd+unix:///?socket={at}/{name}.sock"
[control]
socket = "{at}/{name}.control"
[upstream.u]
uri = "nbd+unix:///?socket={at}/u.sock"
canonical-names = true
late-write-seconds = {late}
[fleet]
etcd = {etcd}
name = "{name}"
address = "nbds://127.0.0.1:{port}"
certificates = "{at}/pki"
lease-seconds = {lease}
"""

LOOK_AGAIN_SECONDS = 0.02

DIES_SECONDS = 8
"""The lease where one has to end: short enough to wait for, and so long that a gateway which has its processor
only now and then still renews it in time."""

LIVES_SECONDS = 120
"""The lease where none ends."""


class NotingDisk(MemoryDisk):
    """One that notes the first byte of each write, in the order in which they came."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.writers: list[bytes] = []

    async def write(self, offset: int, data: Data, *, fua: bool = False) -> None:
        self.writers.append(bytes(data[:1]))
        await super().write(offset, data, fua=fua)


@dataclass(eq=False)
class OneGateway:
    """A gateway of the fleet."""

    at: Path
    name: str
    streams: list[trio.SocketStream] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-P", "-m", "gateway", "serve"]
        with (self.at / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--config", str(self.at / f"{self.name}.toml")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """Kill it, if it is there, stopped or not."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    async def end(self) -> None:
        """End it in good order."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        status = await trio.to_thread.run_sync(self.process.wait, HANG_SECONDS)
        assert status == 0, self.said
        self.process = None

    @property
    def said(self) -> str:
        return (self.at / f"{self.name}.log").read_text(errors="replace")

    async def ask(self, verb: str, **arguments: object) -> ControlAnswer:
        return await ask(self.at / f"{self.name}.control", verb, arguments)

    async def serves(self) -> None:
        while True:
            assert self.process is not None
            assert self.process.poll() is None, self.said
            try:
                await self.ask("status")
                return
            except ControlError:
                await trio.sleep(LOOK_AGAIN_SECONDS)

    async def fleet_verb(self, *words: str) -> str:
        """Have something done to the fleet; give what is said."""
        command = [sys.executable, "-m", "gateway", "fleet", *words]
        config = ["--config", str(self.at / f"{self.name}.toml")]
        run = await trio.run_process([*command, *config], capture_stdout=True)
        return run.stdout.decode()

    async def sessions(self) -> list[Any]:
        answer = await self.ask("sessions")
        assert answer.data is not None
        return list(answer.data["sessions"])

    async def connected(self) -> Client:
        stream = await trio.open_unix_socket(str(self.at / f"{self.name}.sock"))
        self.streams.append(stream)
        return Client(stream)

    async def session(self, export: str = "d") -> Client:
        client = await self.connected()
        await client.go(export)
        return client

    async def session_again(self, export: str = "d") -> Client:
        """Give one, however often the gateway has none to give."""
        while True:
            client = await self.connected()
            await client.structured()
            client.negotiation.go(export, BLOCK_SIZE)
            if not isinstance(await client.event(), Refused):
                return client
            await client.stream.aclose()


@dataclass(eq=False)
class RunningFleet:
    """The gateways, by their names, and the etcd."""

    gateways: dict[str, OneGateway]
    members: Members

    def __getitem__(self, name: str) -> OneGateway:
        return self.gateways[name]

    async def homes(self) -> dict[str, str]:
        """Give which gateway is the home of each disk, as etcd has it."""
        user = "root" if self.members.tls else None
        etcd = Etcd(
            self.members.uris,
            context=self.members.context(),
            user=user,
            password=lambda: PASSWORD,
            seconds=PATIENT_SECONDS,
        )
        async with etcd:
            found, _revision = await etcd.below("/nbd-gateway/homes/")
        return {each.key: json.loads(each.value)["gateway"] for each in found}

    async def home(self) -> OneGateway:
        """Give the home of the only disk, when it has one: it may have been lost a moment ago."""
        while not (names := set((await self.homes()).values())):
            await trio.sleep(LOOK_AGAIN_SECONDS)
        [name] = names
        return self.gateways[name]

    def others(self, one: OneGateway) -> list[OneGateway]:
        return [each for each in self.gateways.values() if each is not one]


def write_pki(at: Path) -> None:
    for name, content in make_pki([], [], [], days=2, now=datetime.now(UTC)).items():
        path = at / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o600)


@asynccontextmanager
async def fleet(
    at: Path,
    *,
    names: Sequence[str] = "abc",
    lease: int = DIES_SECONDS,
    late: float = 0,
    more: str = "",
    exports: str = "",
    etcds: int = 1,
    tls: bool = False,
) -> AsyncIterator[RunningFleet]:
    """Have a fleet that serves, until the block ends."""
    write_pki(at / "pki")
    with ExitStack() as stack:
        members = stack.enter_context(etcd_running(at / "etcd", etcds, tls=tls))
        if tls:
            await answers(members)
            members.etcdctl("user", "add", f"root:{PASSWORD}")
            members.etcdctl("user", "grant-role", "root", "root")
            members.etcdctl("auth", "enable")
            (at / "password").write_text(f"{PASSWORD}\n")
            more += f'etcd-certificates = "{at}/etcd"\netcd-user = "root"\n'
            more += f'etcd-password-file = "{at}/password"\n'
        with free_ports(len(names)) as ports:
            pass
        gateways = {}
        for name, port in zip(names, ports, strict=True):
            text = HEAD.format(
                at=at, name=name, port=port, lease=lease, late=late, etcd=json.dumps(members.uris)
            )
            (at / f"{name}.toml").write_text(text + more + exports)
            gateways[name] = OneGateway(at, name)
            stack.callback(gateways[name].kill)
        running = RunningFleet(gateways, members)
        with trio.fail_after(HANG_SECONDS):
            for each in gateways.values():
                each.start()
            for each in gateways.values():
                await each.serves()
            try:
                yield running
            finally:
                for each in gateways.values():
                    for stream in each.streams:
                        await trio.aclose_forcefully(stream)


async def answers(members: Members) -> None:
    async with Etcd(members.uris, context=members.context(), seconds=PATIENT_SECONDS) as etcd:
        while True:
            try:
                await etcd.get("/none/")
                return
            except EtcdUnavailable:
                await trio.sleep(LOOK_AGAIN_SECONDS)


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await trio.sleep(LOOK_AGAIN_SECONDS)


def is_stopped(one: OneGateway) -> bool:
    assert one.process is not None
    stat = Path(f"/proc/{one.process.pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"
