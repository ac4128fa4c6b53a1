"""Where a gateway reads and writes, as far as its configuration tells.

What it opens stands in many keys: disks, sockets of its own and of servers, logs of policies, keys and
certificates, tickets. Of some it needs to write the file (a disk), of others the directory (a socket is made
there, a log is opened anew). systemd makes directories below /run, /var/log and /var/lib for a service; all
others have to be there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from gateway.config import Config, Listen, Upstream
from gateway.config.admin import AdminUri
from gateway.net.socket_file import is_abstract
from gateway.uri import FileUri

TEMPORARY = ("/tmp", "/var/tmp")
HOMES = ("/home", "/root", "/run/user")

MADE = {"/run/": "RuntimeDirectory", "/var/log/": "LogsDirectory", "/var/lib/": "StateDirectory"}
"""Where systemd makes a directory for a service, and by which key (systemd.exec(5))."""


class Footprint:
    """Those of one configuration; `programs` are read as well: the gateway's own, and the configuration."""

    def __init__(self, config: Config, programs: Iterable[Path]) -> None:
        disks = list(_disks(config))
        sockets, logs = list(_sockets(config)), list(_logs(config))
        kept = [] if config.tickets.directory is None else [config.tickets.directory]
        everywhere = [*disks, *sockets, *logs, *_read(config), *kept]
        absolute = [each.absolute() for each in everywhere]
        self.relative = any(not each.is_absolute() for each in everywhere)
        """Some are looked for from where the gateway is started."""
        self.temporary = any(_is_in(each, TEMPORARY) for each in absolute)
        self.homes = any(_is_in(each, HOMES) for each in (*absolute, *programs))
        self.devices = [each.absolute() for each in disks if each.is_block_device()]
        self.has_sockets = bool(sockets)
        self.made: dict[str, set[str]] = {}
        """Directories that systemd makes: their names, by the key of a unit."""
        self.written = {each.absolute() for each in disks if not each.is_block_device()}
        """What has to be there, and is written."""
        for directory in (*(each.absolute().parent for each in (*sockets, *logs)), *kept):
            self._needs(directory.absolute())

    def _needs(self, directory: Path) -> None:
        """Have a directory made, or at least written to."""
        for root, key in MADE.items():
            if str(directory).startswith(root):
                self.made.setdefault(key, set()).add(str(directory)[len(root) :])
                return
        self.written.add(directory)


def _disks(config: Config) -> Iterator[Path]:
    """Give the images of `file:`, and what may be one among the words of a `command`."""
    for upstream in config.upstream.values():
        if isinstance(upstream.uri, FileUri):
            yield upstream.uri.path
        for word in map(Path, upstream.command or ()):
            if word.is_absolute() and word.exists() and not _runs(word):
                yield word


def _sockets(config: Config) -> Iterator[Path]:
    """Give the Unix sockets that the gateway listens on."""
    for listen in config.listen:
        path = listen.uri.socket_path
        if path is not None and not is_abstract(path):
            yield Path(path)
    if config.control.socket is not None:
        yield config.control.socket
    for uri in admin_uris(config):
        if uri.path is not None:
            yield uri.path


def _logs(config: Config) -> Iterator[Path]:
    """Give the files that policies write."""
    uses = [use for rule in config.rule for use in rule.policies]
    uses += [use for export in config.export for use in export.policies]
    for use in uses:
        if isinstance(file := use.options.get("file"), str):
            yield Path(file)


def _read(config: Config) -> Iterator[Path]:
    """Give what is only read: keys, certificates, tokens, and sockets of servers."""
    tables: list[Listen | Upstream] = [*config.listen, *config.upstream.values()]
    for table in tables:
        yield from (each for each in (table.certificates, table.psk) if each is not None)
    for upstream in config.upstream.values():
        for uri in upstream.nbd_uris:
            if uri.socket_path is not None and not is_abstract(uri.socket_path):
                yield Path(uri.socket_path)
    if (fleet := config.fleet) is not None:
        found = (fleet.certificates, fleet.etcd_certificates, fleet.etcd_password_file)
        yield from (each for each in found if each is not None)
    if config.admin is not None:
        both = (config.admin.tokens, config.admin.certificates)
        yield from (each for each in both if each is not None)


def admin_uris(config: Config) -> tuple[AdminUri, ...]:
    """Give where HTTP is spoken."""
    return () if config.admin is None else config.admin.uri


def _runs(path: Path) -> bool:
    return path.is_file() and bool(path.stat().st_mode & 0o111)


def _is_in(path: Path, directories: Iterable[str]) -> bool:
    return any(path.is_relative_to(each) for each in directories)
