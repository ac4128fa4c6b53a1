"""nbd-gateway serve: the gateway itself, from a configuration file or from the command line alone."""

import gc
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from gateway.cli import UsageError, complain
from gateway.uri import NbdUri, Transport

if TYPE_CHECKING:
    from gateway.config import Config, Spot
    from gateway.config.documents import Note
    from gateway.config.lines import KeyPath
    from gateway.tls.rotation import Stamp

DEFAULT_LISTEN = "nbd://127.0.0.1:10810"
"""One above NBD's own port, because the server behind us is often on this machine; and only for this machine,
until the user says otherwise."""

UPSTREAM_NAME = "main"
"""The name in logs of the only upstream of a command line."""


def serve(
    upstream: Annotated[str | None, Parameter(name="UPSTREAM")] = None,
    /,
    *,
    config: Path | None = None,
    listen: Annotated[tuple[str, ...] | None, Parameter(name=("--listen", "-l"))] = None,
    run: str | None = None,
    pidfile: Path | None = None,
    exit_after_last_client: bool = False,
    max_connections: int | None = None,
    socket_mode: str | None = None,
    tls: Literal["off", "allow", "require"] | None = None,
    tls_certificates: Path | None = None,
    tls_verify_client: Annotated[bool | None, Parameter(negative="--no-tls-verify-client")] = None,
    tls_psk: Path | None = None,
    drain_seconds: float | None = None,
    log_level: Literal["debug", "info", "warning", "error"] | None = None,
    log_format: Literal["console", "json"] | None = None,
) -> int:
    """Serve the exports of an NBD server to NBD clients.

    For example:

      nbd-gateway serve nbd://10.0.0.5
      nbd-gateway serve 'nbd+unix:///?socket=/run/q.sock' --listen nbd://0.0.0.0
      nbd-gateway serve memory:1G --run 'nbdinfo $uri'
      nbd-gateway serve nbd://10.0.0.5 --listen nbds://0.0.0.0 --tls-certificates /etc/pki/nbd
      nbd-gateway serve --config gateway.toml

    SIGTERM lets requests in flight finish, then ends with status 0.

    :param upstream: The server: an NBD URI, or an embedded one (memory:1G, file:disk.img, legacy:qemu-3.0).
        A URI that names an export serves that one, under its name and as the default.
    :param config: Take everything from this file instead ("nbd-gateway init" writes one). "-" is standard
        input.
    :param listen: Where clients connect, an NBD URI; may be repeated. Default: nbd://127.0.0.1:10810, or with
        --run a private Unix socket.
    :param run: Run this shell command, with $uri set, and end with it and its status.
    :param pidfile: Write the process's number there once clients can connect. Another gateway's is left alone.
    :param exit_after_last_client: End when the last client has disconnected (not before the first). Who only
        looks whether the port is open is none.
    :param max_connections: Clients at a time for each listener. Default: 1000.
    :param socket_mode: Permissions of Unix sockets, octal, such as 0660.
    :param tls: TLS for clients: off, allow (for those that want it) or require. Default: off; require with an
        nbds: address, certificates or keys.
    :param tls_certificates: Directory with ca-cert.pem, server-cert.pem and server-key.pem.
    :param tls_verify_client: Whether clients need a certificate of that CA. Default: they do.
    :param tls_psk: File of pre-shared keys (psktool's), which let clients in as well.
    :param drain_seconds: After SIGTERM, how long requests in flight may take. Default: 30.
    :param log_level: The least important messages that are written. Default: info.
    :param log_format: Lines for people, or one JSON object a line. Default: console.
    """
    from gateway.config import ConfigError
    from gateway.log.standard_error import taken_over
    from gateway.tls.rotation import stamp_of

    with taken_over(), ExitStack() as stack:
        if run is not None and config is None and not listen:
            from gateway.net.private import PrivateSocket

            # Like nbdkit: nobody but this user, and so the command, can reach the socket.
            try:
                private = PrivateSocket()
            except OSError as error:
                complain(f"--run cannot have a socket for its command: {error.strerror}")
                return 1
            stack.callback(private.remove)
            socket = NbdUri(tls=False, transport=Transport.UNIX, socket_path=private.path)
            listen = (str(socket),)
        load = partial(  # for each reload, too: what the command line says beside a file stays in force
            build_config,
            upstream,
            config=config,
            listen=listen or (),
            listener={
                "max-connections": max_connections,
                "socket-mode": socket_mode,
                "tls": tls,
                "certificates": None if tls_certificates is None else str(tls_certificates),
                "verify-client": tls_verify_client,
                "psk": None if tls_psk is None else str(tls_psk),
            },
            drain_seconds=drain_seconds,
            log_level=log_level,
            log_format=log_format,
        )
        seen: dict[Path, Stamp] = {}
        try:
            settings = load(note=lambda path: seen.update({path: stamp_of(path)}))
        except ConfigError as error:
            from gateway.upgrade.begin import say_failed

            for problem in error.problems:
                complain(str(problem))
            say_failed([str(problem) for problem in error.problems])
            return 1 if any(problem.file for problem in error.problems) else 2
        once = config is None or config == Path("-")  # standard input has been read
        source = None if config is None or once else (config, lambda note: load(note=note), seen)
        options = (run, pidfile, exit_after_last_client, config is not None and once)
        return _run(settings, source, options)


def _run(
    config: "Config",
    source: "tuple[Path, Callable[[Note], Config], Mapping[Path, Stamp]] | None",
    options: tuple[str | None, Path | None, bool, bool],
) -> int:
    """Serve. `ConfigSource` and `RunOptions` are made here, because their modules are loaded only now."""
    import trio

    from gateway.app import run as app
    from gateway.app.options import RunOptions
    from gateway.app.source import ConfigSource
    from gateway.upstream.configured import StartError

    read = None if source is None else ConfigSource(*source)
    run = partial(app.serve, config, RunOptions(*options), source=read)
    if config.workers != 1:
        from gateway.workers.number import number_of

        if number_of(config) > 1:
            from gateway.app.supervise import supervise

            run = partial(supervise, config, RunOptions(*options), source=read)
    try:
        return trio.run(partial(run, listening=_loaded))
    except StartError as error:
        complain(str(error))
        return 1


def _loaded(_uris: tuple[NbdUri, ...]) -> None:
    """Have garbage looked for from now on (`gateway.__main__`), but not in what is loaded: that stays."""
    gc.freeze()
    gc.enable()


def build_config(
    upstream: str | None,
    *,
    config: Path | None = None,
    listen: tuple[str, ...] = (),
    listener: Mapping[str, object] = MappingProxyType({}),
    drain_seconds: float | None = None,
    log_level: str | None = None,
    log_format: str | None = None,
    note: "Note" = lambda _path: None,
) -> "Config":
    """Give the configuration that the command line means. Raises `UsageError` or `ConfigError` if it makes no
    sense. `listener` are keys of every `[[listen]]`, None for each that was not given. `note` is told of each
    file just before it is read.
    """
    from gateway.cli.vocabulary import vocabulary
    from gateway.config import load

    if upstream is None and config is None:
        raise UsageError(
            "serve needs to know which server: nbd-gateway serve nbd://HOST, or --config FILE "
            "(to try it out: nbd-gateway serve memory:1G)"
        )
    data = _as_data(
        "memory:0" if upstream is None else upstream,
        listen,
        _given(dict(listener)),
        drain_seconds,
        log_level,
        log_format,
    )
    if config is None:
        return _build(data)
    if upstream is not None:
        raise UsageError(
            f"serve takes either UPSTREAM ({upstream}) or --config ({config}): "
            "write the server into the file, as [upstream.NAME]"
        )
    said = {"--listen": listen or None} | {_option(key): listener[key] for key in listener}
    for option, value in said.items():
        if value is not None:
            raise UsageError(
                f"{option} cannot be used with --config: write it into the file, below [[listen]]"
            )
    # Arguments about this run, rather than the service, may be given beside a file. To check them by the same
    # models, we build a configuration in which nothing else can be wrong.
    here, file = _build(data), load(config, vocabulary(), note)
    log = file.log.model_copy(update={key: getattr(here.log, key) for key in data.get("log", {})})
    update: dict[str, object] = {"log": log}
    if drain_seconds is not None:
        update["drain_seconds"] = here.drain_seconds
    return file.model_copy(update=update)


def _as_data(
    upstream: str,
    listen: tuple[str, ...],
    listener: dict[str, Any],
    drain_seconds: float | None,
    log_level: str | None,
    log_format: str | None,
) -> dict[str, Any]:
    """Give the content of a file that says the same as these arguments."""
    socket_mode = listener.pop("socket-mode", None)
    if listener.keys() & {"certificates", "psk"}:
        listener.setdefault("tls", "require")  # whoever gives them means them
    listeners: list[dict[str, Any]] = [
        {"uri": uri} | listener for uri in listen or (DEFAULT_LISTEN,)
    ]
    if socket_mode is not None:
        unix = [listener for listener in listeners if "+unix:" in listener["uri"]]
        for listener in unix or listeners[:1]:  # if there is none, the first one's check explains
            listener["socket-mode"] = socket_mode
    return _given(
        {
            "listen": listeners,
            "upstream": {UPSTREAM_NAME: {"uri": upstream}},
            "drain-seconds": drain_seconds,
            "log": _given({"level": log_level, "format": log_format}),
        }
    )


def _given(table: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if value is not None}


def _build(data: dict[str, Any]) -> "Config":
    from dataclasses import replace

    from gateway.cli.vocabulary import vocabulary
    from gateway.config import ConfigError
    from gateway.config.reading import build

    try:
        return build(data, "", _argument, vocabulary())
    except ConfigError as error:
        said = [replace(each, message=_in_arguments(each.message)) for each in error.problems]
        raise ConfigError(said) from None


def _in_arguments(message: str) -> str:
    """Say what keys to write as which arguments to give: who has no file cannot write into one."""
    return re.sub(
        '\\b(certificates|psk|tls) = (?=")', lambda found: f"{_option(found[1])} ", message
    )


def _argument(path: "KeyPath") -> "Spot":
    """Say which argument gave a key of the data."""
    from gateway.config import Spot

    match path:
        case ("upstream", *_):
            name = "UPSTREAM"
        case ("listen", _, "uri"):
            name = "--listen"
        case ("log", key):
            name = f"--log-{key}"
        case _:
            name = _option(str(path[-1]))
    return Spot(None, name)


def _option(key: str) -> str:
    """Say which argument gives a key of `[[listen]]`, or of the top of the file."""
    return f"--tls-{key}" if key in ("certificates", "verify-client", "psk") else f"--{key}"
