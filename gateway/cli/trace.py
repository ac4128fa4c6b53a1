"""nbd-gateway trace: what the clients and servers of an export say to each other."""

import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.cli import INTERRUPTED, complain

if TYPE_CHECKING:
    from typing import BinaryIO

    from gateway.trace.pcapng import Capture


def trace(
    export: str,
    /,
    *,
    who: str | None = None,
    seconds: float | None = None,
    pcapng: Path | None = None,
    payloads: int = 0,
    config: Path = Path("gateway.toml"),
    socket: Path | None = None,
) -> int:
    """Show what is said between an export's clients, the gateway and its server.

    A line is a message: when it was seen, the id of its session, who is at
    the other end, which way it went (-> to them, <- from them), what it says.

      0.001234  k3wq7x-4 client <- READ 0+4096 cookie 17
      0.001250  k3wq7x-4 server -> READ 0+4096 cookie 3 (the client's 17)

    Sessions that are there are shown, and those that begin meanwhile. A
    connection to the server that several share has * for an id.

    No client waits for that: lines that are not taken as fast as they come are
    left out, and their number is told. Data is counted, and shown only with
    --payloads. What comes over TLS is shown in the clear.

    :param export: The export's name.
    :param who: Show only clients that this pattern means: their address, user, key or certificate's name.
    :param seconds: How long it lasts. Default: 10.
    :param pcapng: Write a capture to this file as well, for Wireshark and tshark.
    :param payloads: How many bytes of each message's data are shown, up to 4096. Default: 0.
    :param config: The configuration, whose [control] says where the gateway listens. Default: gateway.toml.
    :param socket: The control socket itself.
    """
    import trio

    from gateway.cli.asking import export_named
    from gateway.cli.running import NoAnswer, socket_of

    arguments: dict[str, object] = {"export": export_named(export), "payloads": payloads}
    for key, value in (("who", who), ("seconds", seconds)):
        if value is not None:
            arguments[key] = value
    if pcapng is not None:
        arguments["raw"] = True
    try:
        path = socket or socket_of(config, "trace")
        return trio.run(_listen, path, arguments, pcapng)
    except NoAnswer as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


async def _listen(socket: Path, arguments: Mapping[str, object], pcapng: Path | None) -> int:
    from gateway.admin.asking import ControlError
    from gateway.admin.listening import listening
    from gateway.cli.running import NoAnswer

    try:
        async with listening(socket, "trace", arguments) as (answer, told):
            for line in (*answer.done, *answer.problems):
                complain(line)  # standard output has nothing but the conversation
            if not answer.ok:
                return 1
            with _file(pcapng) as file:
                return await _shown(told, _Written(pcapng, file))
    except ControlError as error:
        raise NoAnswer(str(error)) from None


def _file(path: Path | None) -> AbstractContextManager["BinaryIO | None"]:
    """Open the capture. What was there is gone only once there is a trace. Raises `NoAnswer`."""
    from gateway.cli.running import NoAnswer

    if path is None:
        return nullcontext()
    try:
        return path.open("wb", buffering=0)  # what is buffered fails once more when it is closed
    except OSError as error:
        raise NoAnswer(f"{path}: {error.strerror or error}") from None


async def _shown(told: AsyncIterator[dict[str, Any]], written: "_Written") -> int:
    """Show what is told, until it ends; give the exit status."""
    from gateway.plural import plural

    async for each in told:
        if "began" in each:
            written.begin(float(each["began"]))
        elif "end" in each:
            messages, dropped = each["messages"], each["dropped"]
            left_out = f", of which {plural(dropped, 'was', 'were')} left out" if dropped else ""
            complain(f"{each['end']}: {plural(messages, 'message')}{left_out}")
            return 0
        elif "dropped" in each:
            dropped = plural(each["dropped"], "message")
            print(f"{each['time']:10.6f} {dropped} left out", flush=True)
        else:
            print(_line_of(each), flush=True)
            if "raw" in each:
                written.add(each)
    complain("the gateway has ended the trace")
    return 1


def _line_of(told: Mapping[str, Any]) -> str:
    """Give the line for a message, or for what is noted of a session. Words of strangers are in it."""
    from gateway.wire.handshake import printable

    head = f"{told['time']:10.6f} {told['session'] or '*':>9}"
    if "note" in told:
        return f"{head} {printable(told['note'])}"
    way = "->" if told["sent"] else "<-"
    return f"{head} {told['side']} {way} {printable(told['text'])}"


class _Written:
    """The capture, if one is wanted."""

    def __init__(self, path: Path | None, file: "BinaryIO | None") -> None:
        self._path = path
        self._file = file
        self._capture: Capture | None = None

    def begin(self, began: float) -> None:
        """Write what a capture begins with."""
        if self._file is not None:
            from gateway.trace.pcapng import Capture

            self._capture = Capture(began)
            self._write(self._capture.head())

    def add(self, told: Mapping[str, Any]) -> None:
        """Write a message."""
        if self._capture is None:
            return
        packet = self._capture.packet(
            told["time"],
            told["connection"],
            of_client=told["side"] == "client",
            from_gateway=told["sent"],
            at=told["at"],
            raw=base64.b64decode(told["raw"]),
            length=told["length"],
            comment=f"session {told['session']}: {told['text']}",
        )
        self._write(packet)

    def _write(self, data: bytes) -> None:
        """Write at once: whoever looks at the file meanwhile sees whole packets."""
        from gateway.cli.running import NoAnswer

        assert self._file is not None
        try:
            left = memoryview(data)
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise NoAnswer(f"{self._path}: {error.strerror or error}") from None
