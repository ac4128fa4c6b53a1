"""The demo: a gateway before embedded servers with qemu 3.0.0's faults, looked at from both sides.

Its page for browsers is there as well, with clients at work (`demo_work.py`).

What a person meets who uses that version is tried out with a small client of our own, once directly and once
through the gateway. The client does what any does: it believes what it is told.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from gateway.app import demo_work as work
from gateway.app import run as app
from gateway.config import Config, parse
from gateway.config.admin import DEFAULT_PORT
from gateway.embedded import Server, make_server
from gateway.inspect.conform.client import Broken, RawClient
from gateway.net.dial import dial
from gateway.net.drive import Conversation
from gateway.net.options import RelaySocket, plain_socket
from gateway.net.private import PrivateSocket
from gateway.protocol.client_role import Answered, ClientNegotiation, Event
from gateway.protocol.export import Export
from gateway.upstream.configured import StartError
from gateway.uri import Legacy, NbdUri, format_size, parse_nbd_uri
from gateway.wire.constants import DIRTY_BITMAP, Cmd, TransmissionFlag
from gateway.wire.limits import KIB, MIB

UPSTREAM_PORT = 10809
GATEWAY_PORT = 10810
PAGE_PORT = DEFAULT_PORT

SIZE_BYTES = 64 * MIB

SERVERS = {
    "": "qemu-3.0-alone",
    "offset": "qemu-3.0-offset",
    "worst-case": "qemu-3.0-incoherent",
}
"""What is served: the gateway's name of the export, and the embedded server that has it."""

AT_WORK = ("vm-disk", "restore")
"""Exports at which clients are at work."""

HANG_SECONDS = 1.0
"""How long a second connection is waited for. The real program lets it wait for ever; any that answers does so
in a hundredth of that."""

DRAIN_SECONDS = 1
"""How long Ctrl-C waits for what is under way: one of the clients takes so little that it would wait for half a
minute."""

REPLY_SECONDS = 60
"""How long any other answer may take, on however busy a machine."""

DATA = b"data" * (16 * KIB)
"""64 KiB: what a block of the embedded disks holds, so that there are holes beside it."""


@dataclass(frozen=True, slots=True)
class TrialOutcome:
    """What came of a trial; `good`: what a client has to expect."""

    good: bool
    text: str


@dataclass(frozen=True, slots=True)
class Trial:
    """Something that clients do every day."""

    what: str
    export: str
    """Which of `SERVERS` it is done to."""
    do: Callable[[NbdUri], Awaitable[TrialOutcome]]


@dataclass(frozen=True, slots=True)
class Seen:
    """What the demo has to show."""

    direct: NbdUri
    through: NbdUri
    flags_direct: TransmissionFlag
    flags_through: TransmissionFlag
    outcomes: tuple[tuple[Trial, TrialOutcome, TrialOutcome], ...]
    """Each trial with what came of it direct, and through the gateway."""
    page: str
    """Where a browser looks at the gateway, with the token by which one may do everything there."""
    control: Path
    """Where the verbs of the command line find it."""


async def demo(show: Callable[[Seen], None]) -> int:
    """Call `show` with what both sides are like; then serve until a signal.

    Raises `gateway.upstream.configured.StartError`.
    """
    token = secrets.token_urlsafe(24)
    try:
        private = PrivateSocket()
        control = Path(private.path)
        tokens = control.with_name("tokens")
        tokens.touch(0o600)
        tokens.write_text(f"full demo {token}\n")
    except OSError as error:
        why = error.strerror or error
        raise StartError(f"the demo cannot have a control socket and its token: {why}") from None
    try:
        return await _demo(show, control, tokens, token)
    finally:
        private.remove()


async def _demo(show: Callable[[Seen], None], control: Path, tokens: Path, token: str) -> int:
    async with trio.open_nursery() as nursery:
        upstreams: dict[str, NbdUri] = {}
        for name, personality in SERVERS.items():
            server = make_server(Legacy(personality, SIZE_BYTES))
            port = 0 if upstreams else _free(UPSTREAM_PORT)
            upstreams[name] = await _serve(server, port, nursery)
        gateway = f"nbd://127.0.0.1:{_free(GATEWAY_PORT)}"
        page = f"http://127.0.0.1:{_free(PAGE_PORT)}"
        listening = trio.Event()

        async def look() -> None:
            await listening.wait()
            machine, restore = AT_WORK
            filling = await _open(parse_nbd_uri(f"{gateway}/{restore}"))
            await work.fill(filling)
            await filling.close()
            link = await _link(parse_nbd_uri(f"{gateway}/{restore}"), work.RECEIVE_BYTES)
            nursery.start_soon(work.slow_restore, link)
            nursery.start_soon(work.machine, await _open(parse_nbd_uri(f"{gateway}/{machine}")))
            show(await _look(upstreams, gateway, f"{page}/#token={token}", control))

        nursery.start_soon(look)
        failed: StartError | None = None
        try:
            status = await app.serve(
                _config(gateway, upstreams, page, tokens, control),
                listening=lambda _uris: listening.set(),
            )
        except StartError as error:  # as itself, not in the nursery's group
            failed = error
        nursery.cancel_scope.cancel()
    if failed is not None:
        raise failed
    return status


def _config(
    gateway: str, upstreams: dict[str, NbdUri], page: str, tokens: Path, control: Path
) -> Config:
    lines = [f'listen = [{{ uri = "{gateway}" }}]', 'log.level = "error"']
    lines += [f"drain-seconds = {DRAIN_SECONDS}"]
    lines += [f'control.socket = "{control}"']
    lines += [f'admin = {{ uri = "{page}", tokens = "{tokens}" }}']
    for name, uri in upstreams.items():
        upstream = SERVERS[name]
        lines += [f'[upstream."{upstream}"]\nuri = "{uri}"']
        lines += [f'[[export]]\nname = "{name}"\nupstream = "{upstream}"\nupstream-name = ""']
    lines += [f'[upstream.store]\nuri = "memory:{format_size(work.DISK_BYTES)}"']
    for name in AT_WORK:
        lines += [f'[[export]]\nname = "{name}"\nupstream = "store"\nupstream-name = ""']
    return parse("\n".join(lines), "demo")


def _free(port: int) -> int:
    """Give the port, or another one if it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


async def _serve(server: Server, port: int, nursery: trio.Nursery) -> NbdUri:
    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, server.serve, listeners)
    return parse_nbd_uri(f"nbd://127.0.0.1:{listeners[0].socket.getsockname()[1]}")


async def _look(upstreams: dict[str, NbdUri], gateway: str, page: str, control: Path) -> Seen:
    """Try all of it, on both sides."""
    through = {name: parse_nbd_uri(f"{gateway}/{name}") for name in upstreams}
    return Seen(
        upstreams[""],
        through[""],
        await _flags(upstreams[""]),
        await _flags(through[""]),
        tuple(
            [
                (
                    trial,
                    await trial.do(upstreams[trial.export]),
                    await trial.do(through[trial.export]),
                )
                for trial in TRIALS
            ]
        ),
        page,
        control,
    )


# --- The client


@dataclass(frozen=True, slots=True)
class _Link:
    socket: RelaySocket
    export: Export


async def _open(uri: NbdUri) -> RawClient:
    """Open an export with structured replies, and believe what is said of it."""
    return RawClient(await _link(uri), reply_seconds=REPLY_SECONDS)


async def _link(uri: NbdUri, receive_bytes: int | None = None) -> _Link:
    """The same, without anybody who speaks there yet. Its socket holds so many bytes of what comes."""
    stream = await dial(uri)
    if receive_bytes is not None:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    core = ClientNegotiation()
    talk: Conversation[Event] = Conversation(stream, core)
    try:
        await talk.next_event()
        core.ask_structured_replies()
        await talk.next_event()
        core.go(uri.export, ())
        answer = await talk.next_event()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    assert isinstance(answer, Answered)
    assert answer.export is not None
    told = answer.export
    export = Export(told.size, told.flags, structured=core.structured)
    return _Link(plain_socket(stream), export)


async def _flags(uri: NbdUri) -> TransmissionFlag:
    client = await _open(uri)
    await client.close()
    return TransmissionFlag(client.export.flags)


def _several(client: RawClient) -> bool:
    """Say whether it was told that it may use several connections."""
    return bool(client.export.flags & TransmissionFlag.CAN_MULTI_CONN)


# --- What it tries


async def _copy(uri: NbdUri) -> TrialOutcome:
    """Copy the disk, over two connections if that is offered, as nbdcopy does."""
    clients = [await _open(uri)]
    try:
        if _several(clients[0]):
            with trio.move_on_after(HANG_SECONDS):
                clients.append(await _open(uri))
            if len(clients) == 1:
                return TrialOutcome(False, "hangs for ever")
        for number, offset in enumerate(range(0, SIZE_BYTES, MIB)):
            await clients[number % len(clients)].read(offset, MIB)
    finally:
        for client in clients:
            client.abandon()
    how = "several connections" if len(clients) > 1 else "one connection"
    return TrialOutcome(True, f"copied over {how}")


async def _offset(uri: NbdUri) -> TrialOutcome:
    """Write, and read back."""
    client = await _open(uri)
    await client.write(0, DATA)
    read = await client.ask(Cmd.READ, 0, len(DATA))
    await client.close()
    if not read.error and not any(read.data):
        return TrialOutcome(False, "zeros for data, success")
    return TrialOutcome(read.data == DATA, "what was written" if read.data == DATA else str(read))


async def _cache(uri: NbdUri) -> TrialOutcome:
    """Ask to read ahead, as clients may where CACHE is not offered as well."""
    client = await _open(uri)
    try:
        reply = await client.ask(Cmd.CACHE, 0, len(DATA))
    except Broken:
        client.abandon()
        return TrialOutcome(False, "its session ends")
    await client.close()
    return TrialOutcome(not reply.error, str(reply))


async def _contexts(uri: NbdUri) -> TrialOutcome:
    """Ask which meta contexts there are: a backup program looks for its bitmap there."""
    stream = await dial(uri)
    core = ClientNegotiation()
    talk: Conversation[Event] = Conversation(stream, core)
    async with stream:
        await talk.next_event()
        core.ask_structured_replies()
        await talk.next_event()
        core.ask_contexts(uri.export, (), select=False)
        answer = await talk.next_event()
        core.abort()
        await talk.flush()
    assert isinstance(answer, Answered)
    names = [context.name for context in answer.contexts]
    bitmap = any(name.startswith(DIRTY_BITMAP) for name in names)
    return TrialOutcome(bitmap, "with its bitmap" if bitmap else "without its bitmap")


async def _incoherent(uri: NbdUri) -> TrialOutcome:
    """Write, and read what was written over a second connection, if that is offered."""
    writer = await _open(uri)
    await writer.write(0, bytes(len(DATA)))
    await writer.do(Cmd.FLUSH)
    reader = await _open(uri) if _several(writer) else writer
    await reader.read(0, len(DATA))  # as any client reads a partition table
    await writer.write(0, DATA)
    read = await reader.read(0, len(DATA))
    for client in {writer, reader}:
        await client.close()
    return TrialOutcome(read == DATA, "what was written" if read == DATA else "old data")


TRIALS = (
    Trial("nbdcopy (-e 1, the default)", "", _copy),
    Trial("write, read (--offset)", "offset", _offset),
    Trial("CACHE", "", _cache),
    Trial("list of meta contexts", "", _contexts),
    Trial("write, read (worst case)", "worst-case", _incoherent),
)
"""What is tried, in this order, with the option of qemu-nbd that it goes with. All but the last was seen of the
real program."""
