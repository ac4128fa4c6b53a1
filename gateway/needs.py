"""What `serve` will need of this machine and lacks, found out without serving: for `nbd-gateway check`.

Each is asked of who needs it, in the words in which a gateway that starts says it (or, of a `command` and of
policies, one that has its first client). What would be another's to have is not looked at: whether a server can
be reached, and an address listened on, is seen when that is done.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from gateway.access.loading import made
from gateway.config import Config, Listen, Upstream, Use
from gateway.config.data import Finding
from gateway.config.lines import KeyPath
from gateway.net.command import unstartable
from gateway.net.listen import homeless, is_abstract, nobody
from gateway.upstreams import StartError, load_keyring
from gateway.uri import File


def lacking(config: Config) -> Iterator[Finding]:
    """Give what is lacking, and the key that asks for it. Files of disks are opened, and closed again."""
    for number, listen in enumerate(config.listen):
        yield from _of_listener(config, ("listen", number), listen)
    for name, upstream in config.upstream.items():
        yield from _of_upstream(config, ("upstream", name), upstream)
    for number, rule in enumerate(config.rule):
        yield from _of_policies(("rule", number), rule.policies)
    for number, export in enumerate(config.export):
        yield from _of_policies(("export", number), export.policies)
    if config.control.socket is not None and (why := homeless(config.control.socket)):
        yield ("control", "socket"), why


def ending(config: Config) -> Iterator[str]:
    """Say of which certificates the time is over, or soon will be. Raises `StartError`."""
    keyring = load_keyring(config)
    if keyring is not None:
        for whose, what in keyring.warnings(datetime.now(UTC)):
            yield f"{whose}: {what}"


def _of_listener(config: Config, at: KeyPath, listen: Listen) -> Iterator[Finding]:
    path = listen.uri.socket_path
    if path is not None and not is_abstract(path) and (why := homeless(Path(path))):
        yield (*at, "uri"), why
    if listen.socket_owner is not None and (why := nobody(listen.socket_owner)):
        yield (*at, "socket-owner"), why
    if listen.tls_mode != "off":
        alone = config.model_copy(update={"listen": (listen,), "upstream": {}})
        yield from _of_credentials(alone, (*at, "certificates" if listen.certificates else "psk"))


def _of_upstream(config: Config, at: KeyPath, upstream: Upstream) -> Iterator[Finding]:
    if upstream.command is not None and (why := unstartable(upstream.command)):
        yield (*at, "command"), why
    if isinstance(upstream.uri, File):
        from gateway.embedded import DiskError, FileDisk

        try:
            FileDisk(upstream.uri.path).close()
        except DiskError as error:
            yield (*at, "uri"), str(error)
    if upstream.secure:
        alone = config.model_copy(update={"listen": (), "upstream": {at[-1]: upstream}})
        key = "certificates" if upstream.certificates else "psk" if upstream.psk else "uri"
        yield from _of_credentials(alone, (*at, key))


def _of_credentials(alone: Config, at: KeyPath) -> Iterator[Finding]:
    """Load the credentials of a configuration that has those of one place alone."""
    try:
        load_keyring(alone)
    except StartError as error:
        yield at, str(error)


def _of_policies(at: KeyPath, uses: tuple[Use, ...]) -> Iterator[Finding]:
    for number, use in enumerate(uses):
        for why in made(use).lacks():
            yield (*at, "policies", number), f"{use.name}: {why}"
