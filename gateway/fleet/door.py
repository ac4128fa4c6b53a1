"""How a client goes from the gateway where it came in to the home of its disk.

The one connects to the other's `address`, over TLS with certificates of both sides, and says by a PROXY header
of version 2 whom it connects for: the client's address, and in a vector of ours all that is known of it: who it
is, and which disk it asks for (`gateway.handover.given`).

The home answers with one line of JSON: it has the client ("taken"), or another gateway is the home
("elsewhere", and it is asked anew where), or the client is refused ("refused", and why). After "taken" it
greets, as any NBD server does, and the gateway that has led the client there is its NBD client
(`gateway.sessions.led`).

Who has led a client to a home that has ended the session asks there, in place of leading it (`ask_if_kept`),
whether all was kept that the client was answered on that connection: "kept", or else.

Who comes to an `address` has a certificate of the fleet's own CA, and is believed about who its clients are.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio

from gateway.handover.given import Given
from gateway.handover.message import ChannelMessage, NotUnderstood, decode, encode
from gateway.net.dial import DialError, dial
from gateway.net.options import tune
from gateway.net.secure import TlsError, TlsStream
from gateway.tls.credentials import ClientCredentials, ServerCredentials
from gateway.uri import NbdUri
from gateway.wire.errors import WireError
from gateway.wire.limits import KIB
from gateway.wire.proxy import (
    MAX_LONG_BLOCK_BYTES,
    Header,
    ProxySource,
    decode_header,
    encode_header,
    ours_in,
)

if TYPE_CHECKING:
    from gateway.identity import Identity

DIAL_SECONDS = 5.0
"""How long it may take to reach another gateway; as long again may TLS take, and an answer that is known there.
One that is stopped has its connections accepted by the kernel, and one that is stopped later has had TLS."""

MOST_LINE_BYTES = 4 * KIB
"""Of an answer: a sentence, and an address."""


class NotTaken(Exception):
    """The other gateway has not taken the client; the text says why. `again`: it is worth asking where the home
    is now. `answered`: it has said so itself.
    """

    def __init__(self, text: str, *, again: bool, answered: bool = False) -> None:
        super().__init__(text)
        self.again = again
        self.answered = answered


async def lead(
    address: NbdUri,
    credentials: ClientCredentials,
    given: Given,
    quiet_seconds: float,
    answer_seconds: float,
) -> TlsStream:
    """Lead a client to the gateway at an address; give the stream on which that speaks NBD from now on.
    `quiet_seconds`: after so long without a sign the other side is given up; `answer_seconds`: so long it may
    take to have the disk, and to answer. Raises `NotTaken`.
    """
    said = encode(ChannelMessage("client", {"client": given.as_said()}))
    try:
        header = encode_header(_source_of(given.identity), said)
    except ValueError as error:
        raise NotTaken(f"what is known of the client is too long: {error}", again=False) from None
    stream, answer = await _answered(address, credentials, header, quiet_seconds, answer_seconds)
    if answer.get("said") == "taken":
        return stream
    await stream.aclose()
    again = answer.get("said") == "elsewhere"
    raise NotTaken(str(answer.get("why")), again=again, answered=True)


async def ask_if_kept(
    address: NbdUri, credentials: ClientCredentials, way: str, quiet_seconds: float
) -> bool:
    """Ask the gateway at an address whether all is durable that it has answered on a connection of this name
    (`Given.way`), and nothing that came by it is under way there. Whoever cannot be asked has not said so.
    """
    header = encode_header(None, encode(ChannelMessage("kept", {"way": way})))
    try:
        stream, answer = await _answered(address, credentials, header, quiet_seconds, DIAL_SECONDS)
    except NotTaken:
        return False
    await stream.aclose()
    return answer.get("said") == "kept"


async def _answered(
    address: NbdUri,
    credentials: ClientCredentials,
    header: bytes,
    quiet_seconds: float,
    answer_seconds: float,
) -> tuple[TlsStream, dict[str, Any]]:
    """Say a header to the gateway at an address, and give its answer. Raises `NotTaken`."""
    try:
        with trio.fail_after(DIAL_SECONDS):
            plain = await dial(address)
    except (DialError, trio.TooSlowError) as error:
        why = str(error) or f"{address} does not answer within {DIAL_SECONDS:g} s"
        raise NotTaken(why, again=True) from None
    answered = False
    try:
        seconds = max(1, int(quiet_seconds))
        tune(
            plain.socket,  # type: ignore[arg-type] # a Trio socket has what is needed of a plain one
            keepalive_seconds=seconds,
            user_timeout_seconds=seconds,
        )
        with trio.fail_after(DIAL_SECONDS):
            stream, _admitted = await TlsStream.connect(plain, credentials.session())
            await stream.send_all(header)
        with trio.fail_after(answer_seconds):
            answer = await _line(stream)
        answered = True
        return stream, answer
    except (TlsError, trio.BrokenResourceError, trio.TooSlowError, WireError, OSError) as error:
        why = f"{address}: {error.__cause__ or str(error) or 'it does not answer'}"
        raise NotTaken(why, again=True) from None
    finally:
        if not answered:
            await trio.aclose_forcefully(plain)


async def received(
    plain: trio.SocketStream, credentials: ServerCredentials
) -> tuple[TlsStream, Given | str]:
    """Receive who comes, from another gateway; or of which connection it is asked whether all was kept. Raises
    `TlsError`, `WireError`, `NotUnderstood`, `trio.BrokenResourceError`.
    """
    stream, _admitted = await TlsStream.accept(plain, credentials.session)
    data = b""
    while not isinstance(header := decode_header(data, MAX_LONG_BLOCK_BYTES), Header):
        more = await stream.receive_some(header)
        if not more:
            raise WireError(f"the PROXY header ends after {len(data)} bytes")
        data += more
    message = decode(ours_in(header))
    if message.kind == "kept":
        return stream, str(message["way"])
    if message.kind != "client":
        raise NotUnderstood(f"expected a client, got a message {message.kind!r}")
    return stream, Given.of(message["client"], b"")


async def answer(stream: TlsStream, said: str, why: str = "") -> None:
    """Answer whoever leads a client here."""
    with suppress(trio.BrokenResourceError):
        await stream.send_all(json.dumps({"said": said, "why": why}).encode() + b"\n")


async def _line(stream: TlsStream) -> dict[str, Any]:
    """Receive an answer, and no byte more: what follows is the client's."""
    data = b""
    while not data.endswith(b"\n"):
        more = await stream.receive_some(1)
        if not more:
            raise WireError("it has closed the connection without an answer")
        data += more
        if len(data) > MOST_LINE_BYTES:
            raise WireError(f"expected an answer of at most {MOST_LINE_BYTES} bytes")
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise WireError(f"expected an answer of JSON, got {data[:40]!r}")
    return said


def _source_of(identity: Identity) -> ProxySource | None:
    if identity.address is None:
        return None
    _host, _colon, port = identity.peer.rpartition(":")
    return ProxySource(identity.address, int(port) if port.isdigit() else 0)
