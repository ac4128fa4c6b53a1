"""What `[admin]` needs of this machine and does not find: when its door is opened, and for a check."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.config.admin import Admin
from gateway.config.data import Finding
from gateway.net.socket_file import homeless
from gateway.tls.credentials import server_credentials
from gateway.tls.errors import CredentialsError
from gateway.web.tokens import load_tokens


def lacking(settings: Admin) -> Iterator[Finding]:
    """Give what is lacking, and the key that asks for it."""
    for uri in settings.uri:
        if uri.path is not None and (why := homeless(uri.path)):
            yield ("admin", "uri"), why
    yield from lacking_files(settings)


def lacking_files(settings: Admin) -> Iterator[Finding]:
    """Give what is wrong with the files that the process which speaks HTTP will read."""
    try:
        if settings.tokens is not None:
            load_tokens(settings.tokens)
    except CredentialsError as error:
        yield ("admin", "tokens"), str(error)
    try:
        if settings.certificates is not None:
            verify = settings.verify_client is not False
            server_credentials(settings.certificates, verify_client=verify)
    except CredentialsError as failed:
        for each in failed.each:
            yield ("admin", "certificates"), str(each)
