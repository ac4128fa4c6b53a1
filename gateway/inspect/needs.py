"""What `serve` will need of this machine and does not find, without serving. It is for `nbd-gateway check`. A
gateway that has begun to serve asks for the part that only its clients will need.

The code that needs a thing is asked for it, so the words are those of a gateway that starts (or, for a
`command` and for policies, of one that gets its first client). We do not look at what others may have
meanwhile: whether we can reach a server, or listen on an address, shows when that is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from gateway.access.loading import made
from gateway.config import Config, Fleet, Listen, Upstream, Use
from gateway.config.data import Finding
from gateway.config.lines import KeyPath
from gateway.net.command import unstartable
from gateway.net.private import without_room
from gateway.net.privileges import why_not
from gateway.net.socket_file import homeless, is_abstract, ungivable
from gateway.upstream.configured import StartError, load_keyring
from gateway.uri import FileUri


def lacking(config: Config) -> Iterator[Finding]:
    """Give what is lacking, and the key that asks for it. This opens files of disks, and closes them again."""
    for number, listen in enumerate(config.listen):
        yield from _of_listener(config, ("listen", number), listen)
    for name, upstream in config.upstream.items():
        yield from _of_upstream(config, ("upstream", name), upstream)
    yield from lacking_for_clients(config)
    if config.control.socket is not None and (why := homeless(config.control.socket)):
        yield ("control", "socket"), why
    from gateway.inspect.tickets import unkeepable  # a gateway that starts does not ask

    if why := unkeepable(config):
        yield ("tickets", "directory"), why
    for key, why in why_not(config.user, config.group):
        yield (key,), why
    if config.fleet is not None:
        yield from _of_fleet(config.fleet)


def lacking_for_clients(config: Config) -> Iterator[Finding]:
    """Give what is lacking, of the things without which a gateway starts all the same."""
    for name, upstream in config.upstream.items():
        if upstream.command is None:
            continue
        if why := unstartable(upstream.command) or without_room():
            yield ("upstream", name, "command"), why
    for number, rule in enumerate(config.rule):
        yield from _of_policies(("rule", number), rule.policies)
    for number, export in enumerate(config.export):
        yield from _of_policies(("export", number), export.policies)


def ending(config: Config) -> Iterator[str]:
    """Say which certificates have ended, or soon will. Raises `StartError`."""
    keyring = load_keyring(config)
    if keyring is not None:
        for whose, what in keyring.warnings(datetime.now(UTC)):
            yield f"{whose}: {what}"
    if config.fleet is not None:
        from gateway.fleet import terms
        from gateway.tls.errors import CredentialsError

        try:
            found = terms.terms_of(config.fleet)
        except CredentialsError as error:
            raise StartError(f"fleet: {error}") from None
        for whose, what in terms.ending(found, datetime.now(UTC)):
            yield f"{whose}: {what}"


def _of_listener(config: Config, at: KeyPath, listen: Listen) -> Iterator[Finding]:
    path = listen.uri.socket_path
    if path is not None and not is_abstract(path) and (why := homeless(Path(path))):
        yield (*at, "uri"), why
    if listen.socket_owner is not None and (why := ungivable(listen.socket_owner)):
        yield (*at, "socket-owner"), why
    if listen.tls_mode != "off":
        alone = config.model_copy(update={"listen": (listen,), "upstream": {}})
        yield from _of_credentials(at, listen, [alone])


def _of_upstream(config: Config, at: KeyPath, upstream: Upstream) -> Iterator[Finding]:
    if isinstance(upstream.uri, FileUri):
        from gateway.embedded import DiskError, FileDisk

        try:
            FileDisk(upstream.uri.path).close()
        except DiskError as error:
            yield (*at, "uri"), str(error)
    if upstream.secure:
        each = [upstream] if not upstream.uris else []
        each += [upstream.model_copy(update={"uris": (uri,)}) for uri in upstream.uris]
        alone = [
            config.model_copy(update={"listen": (), "upstream": {at[-1]: one}}) for one in each
        ]
        yield from _of_credentials(at, upstream, alone)


def _of_fleet(settings: Fleet) -> Iterator[Finding]:
    from gateway.tls.certificates import load_certificates
    from gateway.tls.credentials import client_credentials, server_credentials
    from gateway.tls.errors import CredentialsError

    at, theirs = settings.certificates, settings.etcd_certificates
    loads: list[tuple[str, Callable[[], object]]] = [
        ("certificates", lambda: server_credentials(at)),
        ("certificates", lambda: client_credentials(at, hostname=settings.address.host)),
    ]
    if theirs is not None:
        loads.append(
            ("etcd-certificates", lambda: load_certificates(theirs, "client", need_ca=True))
        )
    said: set[str] = set()
    for key, load in loads:
        try:
            load()
        except CredentialsError as failed:
            for error in failed.each:
                if str(error) not in said:  # the CA is for both sides
                    said.add(str(error))
                    yield ("fleet", key), str(error)
    if settings.etcd_password_file is not None:
        try:
            settings.etcd_password_file.read_text()
        except (OSError, UnicodeError) as unread:
            why = getattr(unread, "strerror", None) or str(unread)
            yield (
                ("fleet", "etcd-password-file"),
                f"{settings.etcd_password_file}: cannot be read: {why}",
            )
    if settings.fence is not None and (why := unstartable(settings.fence)):
        yield ("fleet", "fence"), why


def _of_credentials(
    at: KeyPath, settings: Listen | Upstream, alone: Iterable[Config]
) -> Iterator[Finding]:
    """Load the credentials of one listener or upstream. Each of the configurations `alone` has one address of
    it, and nothing else. What several addresses lack is said once.
    """
    from gateway.tls.keyring import Keyring, KeyringError

    said: set[tuple[Path | None, str]] = set()
    for one in alone:
        try:
            Keyring(one)
        except KeyringError as failed:
            for error in failed.errors:
                if (error.path, error.problem) not in said:
                    said.add((error.path, error.problem))
                    yield (*at, _key_of(settings, error.path)), f"{failed.whose}: {error}"


def _key_of(settings: Listen | Upstream, path: Path | None) -> str:
    """Say which key of a listener or an upstream asks for a file of credentials."""
    if settings.psk is not None and path in (None, settings.psk):
        return "psk"
    if settings.certificates is not None:
        return "certificates"
    return "uris" if isinstance(settings, Upstream) and settings.uris else "uri"


def _of_policies(at: KeyPath, uses: tuple[Use, ...]) -> Iterator[Finding]:
    for number, use in enumerate(uses):
        for why in made(use).lacks():
            yield (*at, "policies", number), f"{use.name}: {why}"
