"""Units of systemd for a configuration: a service that may do what it has to and nothing else, and its sockets.

Everything that a gateway does not need is closed (systemd.exec(5)), and what it does need is told from its
configuration: where its disks, sockets and files are, which kinds of addresses it has, whether it has ports for
which one has to be privileged. What it cannot tell is what a server of `command` needs beside the files among
its arguments.

`KillMode=mixed`, for servers that the gateway has started would otherwise be told to end while it still drains.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gateway import __version__
from gateway.config import Config, Listen
from gateway.inspect.footprint import Footprint, admin_uris
from gateway.net.socket_file import is_abstract
from gateway.uri import NbdUri, Transport
from gateway.wire.handshake import shown

NOTIFY_RELOAD_SINCE = 253
"""The version of systemd that has Type=notify-reload: it sends SIGHUP, and waits until the reload is over."""

WATCHDOG_SECONDS = 30
"""A gateway that serves nobody for so long is started anew: longer than a machine that swaps stands still, and
no longer than a client waits that gives up at all."""

MOST_FILES = 1_048_576
"""What the gateway asks for itself (`gateway.app.descriptors`); here it is allowed."""

PRIVILEGED_PORTS = range(1, 1024)
"""Of TCP, where net.ipv4.ip_unprivileged_port_start is as the kernel has it (ip(7))."""


class NoUnit(Exception):
    """There is no such unit; the text says why."""


@dataclass(frozen=True)
class Installation:
    """What is to be started, and by which systemd."""

    program: tuple[str, ...]
    """The command that is the gateway."""
    config: Path
    """Absolute."""
    name: str
    """Of both units."""
    user: str | None
    """None: one that systemd makes up."""
    systemd: int
    """Its version."""

    def refuse_what_no_unit_takes(self) -> None:
        """Raise `NoUnit` for a name or a user that systemd would not take, or take for something else."""
        if self.config.name == "-":
            raise NoUnit("standard input is none that a service can read: write it to a file")
        if not re.fullmatch(r"[A-Za-z0-9:_.@-]{1,200}", self.name):
            raise NoUnit(f"--name {shown(self.name)}: expected letters, digits and : _ . @ -")
        if self.user is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.user):
            raise NoUnit(f"--user {shown(self.user)}: expected the name of a user, or a number")


def service_unit(config: Config, here: Installation) -> str:
    """Give the text of the service unit."""
    footprint = Footprint(config, (Path(here.program[0]), here.config))
    user = here.user or config.user
    reload = ["Type=notify", "ExecReload=/bin/kill -HUP $MAINPID"]
    if here.systemd >= NOTIFY_RELOAD_SINCE:
        reload = ["Type=notify-reload"]
    run = " ".join(map(_word, (*here.program, "serve", "--config", str(here.config))))
    return _text(
        here,
        Unit=[
            f"Description=NBD gateway ({here.config})",
            "Wants=network-online.target",
            f"After=network-online.target {here.name}.socket",
        ],
        Service=[
            *reload,
            f"ExecStart={run}",
            *([f"WorkingDirectory={_path(Path.cwd())}"] if footprint.relative else []),
            *(["DynamicUser=yes"] if user is None else [f"User={user}"]),
            *([f"Group={config.group}"] if config.group else []),
            "Restart=on-failure",
            f"WatchdogSec={WATCHDOG_SECONDS}",
            "KillMode=mixed",
            f"LimitNOFILE={MOST_FILES}",
            *lines_of(footprint),
            *_sandbox(config, footprint),
        ],
        Install=["WantedBy=multi-user.target"],
    )


def _sandbox(config: Config, footprint: Footprint) -> Iterator[str]:
    """Give what closes all that a gateway with this configuration does not need (systemd.exec(5))."""
    ports = {each.uri.port for each in config.listen if each.uri.transport is Transport.TCP}
    ports |= {each.port for each in admin_uris(config) if each.path is None}
    capabilities = "CAP_NET_BIND_SERVICE" if ports & {*PRIVILEGED_PORTS} else ""
    unix = any(each.uri.transport is Transport.UNIX for each in config.listen)
    sandbox = {
        "CapabilityBoundingSet": capabilities,
        "AmbientCapabilities": capabilities,
        "NoNewPrivileges": "yes",
        # In a user namespace, users of Unix sockets would all be "nobody", and no port privileged.
        "PrivateUsers": "no" if unix or capabilities else "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "read-only" if footprint.homes else "yes",
        "PrivateTmp": "no" if footprint.temporary else "yes",
        "PrivateDevices": "no" if footprint.devices else "yes",
        "DevicePolicy": "closed",
        "ProtectProc": "invisible",
        "ProcSubset": "pid",
        **dict.fromkeys(
            (
                *("ProtectHostname", "ProtectClock", "ProtectControlGroups", "ProtectKernelLogs"),
                *("ProtectKernelModules", "ProtectKernelTunables", "LockPersonality"),
                *("MemoryDenyWriteExecute", "RestrictNamespaces", "RestrictRealtime"),
                *("RestrictSUIDSGID", "RemoveIPC"),
            ),
            "yes",
        ),
        "RestrictAddressFamilies": " ".join(_families(config)),
        "SystemCallArchitectures": "native",
        "SystemCallFilter": "@system-service",
        "SystemCallErrorNumber": "EPERM",
        "KeyringMode": "private",
        "UMask": "0022" if any(_needs_umask(each) for each in config.listen) else "0077",
    }
    yield from (f"{key}={value}" for key, value in sandbox.items())
    chown = "" if any(each.socket_owner for each in config.listen) else " @privileged"
    yield f"SystemCallFilter=~@resources{chown}"


def socket_unit(config: Config, here: Installation) -> str:
    """Give the text of the socket unit. Raises `NoUnit`."""
    listens = config.listen
    names = {each.descriptor for each in listens}
    if len(names) > 1:
        raise NoUnit(
            "a socket unit has one FileDescriptorName= for all its sockets, and the [[listen]]s have several:"
            " take them out, and each is known by its address"
        )
    files = [each for each in listens if each.uri.transport is Transport.UNIX]
    if len({(each.socket_mode, each.socket_owner) for each in files}) > 1:
        raise NoUnit(
            "a socket unit has one SocketMode= and owner for all its sockets, and the [[listen]]s have several"
        )
    if any(each.uri.port == 0 for each in listens):
        raise NoUnit("port 0 is another one each time, and clients would have to be told")
    lines = [f"ListenStream={_stream(each.uri)}" for each in listens]
    [name] = names
    if name is not None:
        lines.append(f"FileDescriptorName={name}")
    if any(":" in (each.uri.host or "") for each in listens):
        lines.append("BindIPv6Only=both")
    if files:
        mode, owner = files[0].socket_mode, files[0].socket_owner
        lines.append(f"SocketMode={0o755 if mode is None else mode:04o}")
        lines += [f"SocketUser={owner.user}"] if owner and owner.user else []
        lines += [f"SocketGroup={owner.group}"] if owner and owner.group else []
        lines.append("RemoveOnStop=yes")
    return _text(
        here,
        Unit=[f"Description=Sockets of the NBD gateway ({here.config})"],
        Socket=[*lines, "Backlog=1024"],
        Install=["WantedBy=sockets.target"],
    )


def _families(config: Config) -> list[str]:
    """Give the kinds of addresses that are needed; that of Unix sockets always is: by it systemd is told."""
    uris = [each.uri for each in config.listen]
    uris += [uri for each in config.upstream.values() for uri in each.nbd_uris]
    kinds = {uri.transport for uri in uris}
    http = any(each.path is None for each in admin_uris(config))
    inet = ["AF_INET", "AF_INET6"] if http or Transport.TCP in kinds else []
    return ["AF_UNIX", *inet, *(["AF_VSOCK"] if Transport.VSOCK in kinds else [])]


def _needs_umask(listen: Listen) -> bool:
    """Say whether clients of a Unix socket get in by the umask alone."""
    return listen.uri.transport is Transport.UNIX and listen.socket_mode is None


def _stream(uri: NbdUri) -> str:
    """Give an address as systemd.socket(5) has it. Raises `NoUnit`."""
    match uri.transport:
        case Transport.UNIX:
            path = uri.socket_path or ""
            return (
                f"@{path[1:]}"
                if is_abstract(path)
                else str(Path(path).absolute()).replace("%", "%%")
            )
        case Transport.VSOCK:
            return f"vsock:{'' if uri.cid is None else uri.cid}:{uri.port or 10809}"
        case Transport.TCP:
            host = {"localhost": "127.0.0.1", "": "[::]"}.get(uri.host or "", uri.host or "")
            if not re.fullmatch(r"[0-9.]+|[0-9a-fA-F:.\[\]]+", host):
                raise NoUnit(f"{uri}: a socket unit has an IP address, and not the name of a host")
            host = f"[{host}]" if ":" in host and host[0] != "[" else host
            return f"{host}:{10809 if uri.port is None else uri.port}"


def lines_of(footprint: Footprint) -> Iterator[str]:
    """Give what a service unit says of it: which directories there are, and what may be written."""
    for key, names in sorted(footprint.made.items()):
        yield f"{key}={' '.join(map(_path, sorted(names)))}"
    if footprint.written:
        # With "-": what is missing is for the gateway to say, in words.
        yield f"ReadWritePaths={' '.join(_path(f'-{each}') for each in sorted(footprint.written))}"
    if footprint.has_sockets and "RuntimeDirectory" in footprint.made:
        yield "RuntimeDirectoryPreserve=yes"  # or the files of a socket unit would go with the service
    for device in footprint.devices:
        yield f"DeviceAllow={_path(device)} rw"


def _word(text: str) -> str:
    """Give a word of a command as systemd.service(5) reads it: with its `%`, `$` and quotes escaped."""
    escaped = re.sub(r'(["\\])', r"\\\1", text).replace("%", "%%").replace("$", "$$")
    return escaped if re.fullmatch(r"[^\s'\"\\;]+", escaped) else f'"{escaped}"'


def _path(path: Path | str) -> str:
    """Give a path in a list of them: with its `%` and quotes escaped."""
    escaped = re.sub(r'(["\\])', r"\\\1", str(path)).replace("%", "%%")
    return f'"{escaped}"' if re.search(r"[\s'\"\\]", escaped) else escaped


def _text(here: Installation, **sections: list[str]) -> str:
    head = f"# Of nbd-gateway {__version__}: nbd-gateway unit {here.config}\n"
    parts = ["\n".join([f"[{title}]", *lines]) for title, lines in sections.items()]
    return head + "\n" + "\n\n".join(parts) + "\n"
