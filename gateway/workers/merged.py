"""What several workers answer, as one answer: names and numbers of `gateway.status`, put together. Pure.

Numbers are added up. Times are told as bounds ("half were under"), and such a bound of all is the largest one
of each: that is true of them together, if not always the narrowest. Of what is the same in all workers, as the
address of a listener, the first one's word is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

Shown = dict[str, Any]

STATES = ("disabled", "down", "up", "unknown")
"""Of an upstream: the first of these that any worker has found. One that has not tried knows nothing."""


def added(several: Iterable[Mapping[str, Any]]) -> Shown:
    """Add up numbers by name, also within tables; times are put together as such."""
    found: Shown = {}
    for each in several:
        if "sampled" in each:
            found = dict(each) if not found else _times(found, each)
            continue
        for name, value in each.items():
            if isinstance(value, Mapping):
                found[name] = added([found.get(name, {}), value])
            else:
                found[name] = found.get(name, 0) + value
    return found


def _times(one: Mapping[str, Any], other: Mapping[str, Any]) -> Shown:
    """Put times together: how many, their mean, and bounds."""
    if not one["sampled"] or not other["sampled"]:
        return dict(one if one["sampled"] else other)
    count = one["sampled"] + other["sampled"]
    mean = (one["mean"] * one["sampled"] + other["mean"] * other["sampled"]) / count
    found: Shown = {"sampled": count, "mean": round(mean, 6)}
    for name in one.keys() - found.keys():
        found[name] = _BOTH.get(name, _bound)(one[name], other[name])
    return found


def _bound(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else max(one, other)


_BOTH: Mapping[str, Callable[[Any, Any], Any]] = {
    "total": lambda one, other: round(one + other, 6),
    "buckets": lambda one, other: [sum(both) for both in zip_longest(one, other, fillvalue=0)],
}
"""What of times is no bound."""


def status_of(several: Sequence[Mapping[str, Any]]) -> Shown:
    """Put `status` together: at least one. Raises `KeyError` for a name that nobody has thought of here."""
    return {name: _STATUS[name](several, name) for name in several[0]}


MOST_SHOWN = 20
"""Of what each worker shows a few: as many as one process shows."""


def _first(several: Sequence[Mapping[str, Any]], name: str) -> Any:
    return several[0][name]


def _sum(several: Sequence[Mapping[str, Any]], name: str) -> int:
    return sum(each[name] for each in several)


def _any(several: Sequence[Mapping[str, Any]], name: str) -> bool:
    return any(each[name] for each in several)


def _latest(several: Sequence[Mapping[str, Any]], name: str) -> float | None:
    return max((each[name] for each in several if each[name] is not None), default=None)


def _tables(several: Sequence[Mapping[str, Any]], name: str) -> Shown:
    return added(each[name] for each in several)


def _listeners(several: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    return by_name(several, name, ("listener",), _listener)


def _upstreams(several: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    return by_name(several, name, ("upstream",), upstream)


def _came_by(several: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    return by_name(several, name, ("listener",), _came_by_one)


def _expiries(several: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    return by_name(several, name, ("file",), lambda same: same[0])


def _certificates(several: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    return by_name(several, name, ("of", "what"), lambda same: same[0])


def _events(several: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    return by_name(several, name, ("event", "upstream"), _event)


def _names(several: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    return sorted({one for each in several for one in each[name]})


def _pauses(several: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    found = by_name(several, name, ("export",), lambda same: same[0])
    return sorted(found, key=lambda each: each["export"])[:MOST_SHOWN]


def _longest(several: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    found = [one for each in several for one in each[name]]
    return sorted(found, key=lambda each: -(each["silent_seconds"] or 0.0))[:MOST_SHOWN]


def _some(several: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    return [one for each in several for one in each[name]][:MOST_SHOWN]


def _switched(several: Sequence[Mapping[str, Any]], name: str) -> Shown:
    return {export: server for each in several for export, server in each[name].items()}


_STATUS: Mapping[str, Callable[[Sequence[Mapping[str, Any]], str], Any]] = {
    "version": _first,
    "compiled_pump": _first,
    "started": _first,
    "config_loaded": _latest,
    "uptime_seconds": _latest,
    "draining": _any,
    "older": _first,
    "fleet": _first,
    "sessions_end_in_seconds": _latest,
    "waits_for_sessions": _some,
    "listeners": _listeners,
    "came_by": _came_by,
    "sessions": _sum,
    "negotiations": _sum,
    "stuck_sessions": _sum,
    "stuck": _longest,
    "upstreams": _upstreams,
    "paused": _names,
    "pauses": _pauses,
    "switched": _switched,
    "disks_with_losses_untold": _sum,
    "tickets": _first,
    "certificates": _certificates,
    "expiries": _expiries,
    "totals": _tables,
    "hub": _tables,
    "events": _events,
    "log_lines_dropped": _sum,
}
"""How each name of `status` is put together."""


def by_name(
    several: Iterable[Mapping[str, Any]],
    key: str,
    names: Sequence[str],
    together: Callable[[list[Mapping[str, Any]]], Mapping[str, Any]],
) -> list[Mapping[str, Any]]:
    """Put lists together: what has the same names becomes one, in the order in which it is first met."""
    found = _same(several, key, lambda one: tuple(one[name] for name in names))
    return [together(ones) for ones in found.values()]


def in_order(
    pages: Sequence[Mapping[str, Any]],
    key: str,
    place: Callable[[Mapping[str, Any]], Any],
    together: Callable[[list[Mapping[str, Any]]], Mapping[str, Any]],
) -> tuple[list[Mapping[str, Any]], bool]:
    """Put together the pages that come after one place, and say whether there is more. What comes behind the
    end of a page that has another one after it may not be all that there is, and is left for the next time.
    """
    ends = [place(each[key][-1]) for each in pages if each["more"] and each[key]]
    several = [
        {key: [one for one in each[key] if not ends or place(one) <= min(ends)]} for each in pages
    ]
    found = [together(same) for same in _same(several, key, place).values()]
    count = sum(len(each[key]) for each in several)
    return sorted(found, key=place), bool(ends) or count < sum(len(each[key]) for each in pages)


def _same(
    several: Iterable[Mapping[str, Any]], key: str, what: Callable[[Mapping[str, Any]], Any]
) -> dict[Any, list[Mapping[str, Any]]]:
    same: dict[Any, list[Mapping[str, Any]]] = {}
    for each in several:
        for one in each[key]:
            same.setdefault(what(one), []).append(one)
    return same


def _listener(same: list[Mapping[str, Any]]) -> Shown:
    return {
        **same[0],
        "clients": sum(each["clients"] for each in same),
        "drained": any(each["drained"] for each in same),
        "sessions_end_in_seconds": _latest(same, "sessions_end_in_seconds"),
        "handshakes": added(each["handshakes"] for each in same),
        "tls_versions": added(each["tls_versions"] for each in same),
    }


def _came_by_one(same: list[Mapping[str, Any]]) -> Shown:
    return {
        **same[0],
        "sessions": added(each["sessions"] for each in same),
        "ended": added(each["ended"] for each in same),
    }


def upstream(same: list[Mapping[str, Any]]) -> Shown:
    """Put together what workers know of one upstream."""
    state = min((each["state"] for each in same), key=STATES.index)
    return {
        **same[0],
        "state": state,
        "why": next((each["why"] for each in same if each["state"] == state and each["why"]), None),
        "sessions": sum(each["sessions"] for each in same),
        "connections": sum(each["connections"] for each in same),
        "ready": sum(each["ready"] for each in same),
        "repaired": added(each["repaired"] for each in same),
        "flags_cleared": added(each["flags_cleared"] for each in same),
        "seconds": added(each["seconds"] for each in same),
    }


def export(same: list[Mapping[str, Any]]) -> Shown:
    """Put together what workers know of one export."""
    paused = next((each for each in same if each["paused"]), same[0])
    return {
        **paused,
        "upstream": next((each["upstream"] for each in same if each["upstream"]), None),
        "sessions": sum(each["sessions"] for each in same),
        "totals": added(each["totals"] for each in same),
    }


def _event(same: list[Mapping[str, Any]]) -> Shown:
    return {**same[0], "times": sum(each["times"] for each in same)}


def losses_of(several: Sequence[Mapping[str, Any]]) -> Shown:
    """Put `losses` together: no disk is in two workers."""
    return {
        "losses": [each for one in several for each in one["losses"]],
        "more": sum(each["more"] for each in several),
        "unnamed": sum(each["unnamed"] for each in several),
    }


def lines(several: Sequence[tuple[int, Sequence[str]]]) -> tuple[str, ...]:
    """Put together what workers say in lines for people: what all say is there once, and of the rest it is said
    which worker it is.
    """
    if not several:
        return ()
    common = [line for line in several[0][1] if all(line in said for _number, said in several)]
    rest = [
        f"worker {number}: {line}"
        for number, said in several
        for line in said
        if line not in common
    ]
    return (*common, *rest)
