"""Keys of etcd that are followed: all that begin with a prefix, as etcd had them a moment ago.

They are read once, and from then on etcd is asked what has changed since. So whoever asks here asks nobody, and
may be told what was true a moment ago. What must be true now is compared by etcd when it is changed
(`Etcd.change`).

An etcd that was begun anew, or taken from a backup, counts its changes from an earlier number on. Then all is
read as at first, and whoever is told is told before that numbers of before mean nothing any more.

A question for changes is asked anew after `ASK_ANEW_SECONDS`: a member of etcd that was stopped in the middle
of one would else be waited for, and what others have changed would never come.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from gateway.fleet.answers import EtcdForgotten, EtcdKey, EtcdRefused, EtcdUnavailable
from gateway.fleet.etcd import Etcd

ASK_ANEW_SECONDS = 10.0
"""How long a question for changes waits. It costs etcd as little as a read, and is the longest that a change is
not known here while most of etcd is there."""

AGAIN_SECONDS = 0.5
"""How long to wait before etcd is asked again that has not answered."""

Brought = Callable[[EtcdKey], Awaitable[object]]
"""Is told of a key that has changed, or is `gone`."""


class FollowedKeys:
    """The keys below a prefix. `brought` is told of each change, one after the other, also of those that are
    only found when all is read anew. `begun_anew` is called where etcd counts from an earlier number on.
    """

    def __init__(
        self,
        etcd: Etcd,
        prefix: str,
        brought: Brought,
        begun_anew: Callable[[], object] = lambda: None,
    ) -> None:
        self._etcd = etcd
        self._there: dict[str, int] = {}
        """Those that are there, and when each was changed last."""
        self._prefix = prefix
        self._brought = brought
        self._begun_anew = begun_anew
        self._last = 0
        """After which revision to ask for more."""
        self._is_read = False

    async def read(self) -> None:
        """Read all of them. Raises `EtcdUnavailable`, `EtcdRefused`."""
        found, revision = await self._etcd.below(self._prefix)
        if revision < self._last:
            self._there = dict.fromkeys(self._there, 0)
            self._begun_anew()
        there = {each.key for each in found}
        for gone in self._there.keys() - there:
            await self._note(EtcdKey(gone, "", revision, gone=True))
        for each in found:
            if self._there.get(each.key) != each.revision:
                await self._note(each)
        self._last, self._is_read = revision, True

    def note_ours(self, key: str, revision: int) -> None:
        """A key was set here: it is found gone, if it is, also before it was heard of."""
        self._there.setdefault(key, revision)

    async def run(self) -> None:
        """Follow them until cancelled."""
        while True:
            try:
                if not self._is_read:
                    await self.read()
                found, last = await self._etcd.changes(self._prefix, self._last, ASK_ANEW_SECONDS)
                for each in found:
                    await self._note(each)
                self._last = last
            except EtcdForgotten:
                self._is_read = False
                await trio.sleep(AGAIN_SECONDS)  # one that is only behind has that to catch up
            except (EtcdUnavailable, EtcdRefused):  # who keeps the lease says so in the log
                await trio.sleep(AGAIN_SECONDS)

    async def _note(self, key: EtcdKey) -> None:
        if key.gone:
            self._there.pop(key.key, None)
        else:
            self._there[key.key] = key.revision
        await self._brought(key)
