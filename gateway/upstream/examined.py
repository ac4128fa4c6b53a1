"""What an INFO has shown of a server, so that it need not be asked each time: without a clock or a socket.

Some quirks are told by how a server answers an INFO (`gateway.quirks.Evidence`), and an export that is open
cannot be asked. But a server may open a disk for INFO as well (nbdkit does, and its plugins may have to log in
somewhere): then it does that twice for each client. So INFO goes first only as long as nothing is known of the
server. Afterwards GO goes alone; and only if what it says leaves a quirk in doubt, which no INFO has settled of
a server that says just this, is the link given up for another one, on which INFO goes first again.

Nothing of it is believed of a server that was seen down since, or longer than what it has spoken: the server
behind an address changes. If it does so unseen, what it says has to be the same in every flag and size for it
to be taken for the one before; but who has agreed on structured replies with it and who has not are told alike
(DF alone is not for both).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from gateway.quirks import TOLD_BY_INFO, Evidence, Quirk
from gateway.upstream.ladder import RUNG_SECONDS
from gateway.wire.constants import TransmissionFlag

MOST_EXAMINED = 256
"""How many different answers are remembered: each export may have its own flags and sizes."""


class Examined:
    """What one server has shown. Times are in seconds, of any clock that never goes back."""

    def __init__(self) -> None:
        self._until = float("-inf")
        self._shown: dict[Evidence, Evidence] = {}
        self._no_matter: dict[Evidence, bool] = {}

    def known(self, now: float) -> bool:
        """Say whether GO may go alone."""
        return now < self._until

    def note(self, evidence: Evidence, now: float) -> None:
        """An INFO was asked, and all that it has shown is in the evidence."""
        if not self.known(now) or len(self._shown) >= MOST_EXAMINED:
            self._shown.clear()
            self._until = now + RUNG_SECONDS
        self._shown[_known_by(evidence)] = evidence

    def settle(
        self, evidence: Evidence, quirks: Callable[[Evidence], Collection[Quirk]], now: float
    ) -> Evidence | None:
        """Complete evidence of GO alone; None: a quirk depends on what INFO would show."""
        no_matter = self._no_matter.get(evidence)
        if no_matter is None:
            if len(self._no_matter) >= MOST_EXAMINED:
                self._no_matter.clear()
            no_matter = self._no_matter[evidence] = _is_no_matter(evidence, quirks)
        if no_matter:
            return evidence
        shown = self._shown.get(_known_by(evidence))
        if shown is None or not self.known(now):
            return None
        info, sizeless = shown.unasked_info, shown.sizeless_info
        return replace(evidence, unasked_info=info, sizeless_info=sizeless)


def _is_no_matter(evidence: Evidence, quirks: Callable[[Evidence], Collection[Quirk]]) -> bool:
    """Say whether the quirks are the same whatever an INFO would show."""
    possible = [
        quirks(replace(evidence, unasked_info=reply, sizeless_info=sizeless))
        for reply in TOLD_BY_INFO
        for sizeless in (False, True)
    ]
    return all(each == possible[0] for each in possible)


def _known_by(evidence: Evidence) -> Evidence:
    """Give what is left of it without what INFO has shown, and without what depends on whom it was told to."""
    flags = evidence.flags & ~int(TransmissionFlag.SEND_DF)
    return replace(evidence, unasked_info=None, sizeless_info=False, structured=False, flags=flags)
