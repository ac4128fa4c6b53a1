"""Whom the gateway becomes, once all is open that takes more rights."""

from __future__ import annotations

from gateway.config import Config
from gateway.upstream.configured import StartError


def become_whom_it_says(config: Config) -> None:
    """Become whom a configuration says, if it does; the control socket goes to them. Raises `StartError`."""
    if config.user is None and config.group is None:
        return
    from gateway.net.privileges import CannotBecome, become

    try:
        become(config.user, config.group, config.control.socket)
    except CannotBecome as error:
        raise StartError(str(error)) from None
