"""Where the configuration came from, and how it is read again.

A reload reads it, with one process (`reload`) as with several workers (`reload_all`); and where the
configuration says so, a file of it that has changed asks for a reload.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from gateway.access.loading import look_anew
from gateway.config import Config
from gateway.config.documents import Note
from gateway.tls.rotation import Stamp, stamp_of

LOOK_AT_FILE_SECONDS = 5
"""How often we look whether the file has changed, as for credentials (`gateway.tls.keyring`)."""


@dataclass(frozen=True)
class ConfigSource:
    """Where the configuration came from, and comes from again."""

    path: Path
    load: Callable[[Note], Config]
    """Raises `ConfigError`. Called in a thread, with what is to be told of each file just before it is read."""
    seen: Mapping[Path, Stamp]
    """What the files were just before they were first loaded."""


class ConfigFiles:
    """The files of a configuration, as they were when they were tried last. Without a `source` (it came from
    the command line, or from standard input) there are none, and nothing is read again.
    """

    def __init__(self, source: ConfigSource | None) -> None:
        self.source = source
        self._tried = {} if source is None else dict(source.seen)

    @property
    def where(self) -> str:
        """What an error begins with that is about the file."""
        return "" if self.source is None else f"{self.source.path}: "

    async def read(self) -> Config:
        """Read them again, and look for policies again. Raises `ConfigError`."""
        assert self.source is not None
        look_anew()
        tried: dict[Path, Stamp] = {}
        load = partial(self.source.load, lambda path: tried.update({path: stamp_of(path)}))
        self._tried = tried
        return await trio.to_thread.run_sync(load, abandon_on_cancel=True)

    async def watch(
        self, wanted: Callable[[], bool], reload: Callable[[], Awaitable[object]]
    ) -> None:
        """Reload when they are not as they were when last tried, if that is `wanted`, until cancelled.

        A change is taken up when two looks have seen the same; one that fails is told of once, and the next
        change tried again.
        """
        if self.source is None:
            return
        before: Mapping[Path, Stamp] = self._tried
        while True:
            await trio.sleep(LOOK_AT_FILE_SECONDS)
            now = {path: stamp_of(path) for path in list(self._tried)}
            settled, before = now == before, now
            if wanted() and settled and now != self._tried:
                await reload()
