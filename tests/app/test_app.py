"""The composition root, where it can be looked at without a process of its own."""

from __future__ import annotations

import errno
import os
import socket

import pytest
import trio

from gateway.config import parse
from gateway.upstream.configured import upstreams
from gateway.upstream.errors import Unreachable
from gateway.wire.constants import Rep


@pytest.mark.parametrize(
    ("upstream", "call", "says"),
    [
        ('uri = "memory:1M"', "socketpair", "cannot connect to the server in here: "),
        ('command = ["nbdkit", "null"]', "socket", "cannot start the server nbdkit null: "),
    ],
)
async def test_an_upstream_without_descriptors_is_unreachable(
    monkeypatch: pytest.MonkeyPatch, upstream: str, call: str, says: str
) -> None:
    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    config = parse(f'[[listen]]\nuri = "nbd://h"\n[upstream.main]\n{upstream}\n', "test")
    async with trio.open_nursery() as nursery, upstreams(config, nursery, None) as servers:
        with monkeypatch.context() as patch:
            patch.setattr(socket, call, none_left)
            with pytest.raises(Unreachable) as caught:
                await servers["main"].connector.connect()
    assert f"{says}{os.strerror(errno.EMFILE)}" in caught.value.text
    assert caught.value.reply == Rep.ERR_SHUTDOWN
