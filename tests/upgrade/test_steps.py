"""Both processes of an upgrade by their tables alone: every order of what happens, with a death at every
step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from gateway.upgrade.steps import (
    NEWER,
    OLDER,
    Act,
    Happening,
    NewerIs,
    OlderIs,
    newer_step,
    older_step,
)

SAID = {
    Act.SAY_GO: Happening.GO,
    Act.GIVE_REST: Happening.BYE,
    Act.SAY_READY: Happening.READY,
    Act.SAY_FAILED: Happening.FAILED,
    Act.SAY_SERVING: Happening.SERVING,
    Act.SAY_THANKS: Happening.THANKS,
    Act.SAY_STOP: Happening.STOP,
}
"""What one process does -> what happens to the other one."""

DIED = Happening.OTHER_DIED


class World(NamedTuple):
    """Two processes, and what is on its way between them; the end of a channel is `DIED`."""

    older: OlderIs = OlderIs.STARTING
    newer: NewerIs = NewerIs.PREPARING
    to_newer: tuple[Happening, ...] = ()
    to_older: tuple[Happening, ...] = ()
    older_accepts: bool = True
    newer_accepts: bool = False
    older_clients: bool = True
    """There are clients in the older process, or something that is lost and was not told."""
    newer_has: bool = False
    """What the older process had to give is here."""
    older_lives: bool = True
    newer_lives: bool = True
    killed: str = ""
    told: bool = False
    """Somebody has told either to end."""


def older_does(world: World, event: Happening) -> World:
    state, acts = older_step(world.older, event)
    world = world._replace(older=state)
    for act in acts:
        if act in SAID:
            world = world._replace(to_newer=(*world.to_newer, SAID[act]))
        match act:
            case Act.STOP_ACCEPTING:
                world = world._replace(older_accepts=False)
            case Act.ACCEPT_AGAIN:
                world = world._replace(older_accepts=True)
            case Act.KILL_NEWER:
                world = world._replace(newer_lives=False, newer_accepts=False, to_newer=())
            case Act.DRAIN:
                world = world._replace(older_accepts=False)
            case _:
                pass
    ended = state is OlderIs.ENDED
    if ended and world.older_lives:
        world = world._replace(
            older_lives=False, older_accepts=False, to_newer=(*world.to_newer, DIED), to_older=()
        )
    return world


def newer_does(world: World, event: Happening) -> World:
    state, acts = newer_step(world.newer, event)
    world = world._replace(newer=state)
    for act in acts:
        if act in SAID:
            world = world._replace(to_older=(*world.to_older, SAID[act]))
        if act is Act.ACCEPT:
            world = world._replace(newer_accepts=True)
        if act is Act.HAVE_ALL:
            world = world._replace(newer_has=True)
        if act is Act.DRAIN:
            world = world._replace(newer_accepts=False)
    if state is NewerIs.ENDED and world.newer_lives:
        world = world._replace(
            newer_lives=False, newer_accepts=False, to_older=(*world.to_older, DIED), to_newer=()
        )
    return world


def nexts(world: World) -> Iterator[tuple[str, World]]:
    """What may happen next."""
    if world.older_lives:
        if world.to_older:
            heard, *rest = world.to_older
            yield (
                f"older hears {heard.name}",
                older_does(world._replace(to_older=tuple(rest)), heard),
            )
        if world.older in (OlderIs.STARTING, OlderIs.GOING):
            yield "older waits too long", older_does(world, Happening.FAILED)
        if world.older in (OlderIs.DRAINING, OlderIs.ENDING, OlderIs.STOPPING):
            empty = older_does(world._replace(older_clients=False), Happening.EMPTY)
            yield "older's clients leave", empty
        if world.older is OlderIs.DRAINING:
            yield "deadline", older_does(world, Happening.DEADLINE)
        if not world.told:
            yield "older is told to end", older_does(world._replace(told=True), Happening.TOLD)
    if world.newer_lives:
        if world.to_newer:
            heard, *rest = world.to_newer
            yield (
                f"newer hears {heard.name}",
                newer_does(world._replace(to_newer=tuple(rest)), heard),
            )
        if world.newer in (NewerIs.PREPARING, NewerIs.ALONE_SOON):
            yield "newer is prepared", newer_does(world, Happening.PREPARED)
            if not world.killed:
                yield "newer fails", newer_does(world, Happening.FAILED)
        if world.newer is NewerIs.STOPPING:
            yield "newer waits too long", newer_does(world, DIED)
        if not world.told:
            yield "newer is told to end", newer_does(world._replace(told=True), Happening.TOLD)
    if not world.killed:
        if world.older_lives:
            # What was said before is there to be read.
            yield (
                "older is killed",
                world._replace(
                    killed="older",
                    older_lives=False,
                    older_accepts=False,
                    to_older=(),
                    to_newer=(*world.to_newer, DIED),
                ),
            )
        if world.newer_lives:
            yield (
                "newer is killed",
                world._replace(
                    killed="newer",
                    newer_lives=False,
                    newer_accepts=False,
                    to_newer=(),
                    to_older=(*world.to_older, DIED),
                ),
            )


def worlds() -> dict[World, list[str]]:
    """Every world that can be, with a way that leads to it."""
    found: dict[World, list[str]] = {World(): []}
    left = deque(found)
    while left:
        world = left.popleft()
        for what, following in nexts(world):
            if following not in found:
                found[following] = [*found[world], what]
                left.append(following)
    return found


WORLDS = worlds()


def test_there_are_many() -> None:
    assert len(WORLDS) > 100
    assert {world.older for world in WORLDS} == set(OlderIs)
    assert {world.newer for world in WORLDS} == set(NewerIs)


def test_two_never_accept() -> None:
    assert not [way for world, way in WORLDS.items() if world.older_accepts and world.newer_accepts]


def at_rest(world: World) -> bool:
    """Nothing is on its way to who lives, and neither waits for anything but people and clients."""
    waits = world.older in (OlderIs.STARTING, OlderIs.GOING, OlderIs.LEAVING, OlderIs.STOPPED)
    prepares = world.newer in (NewerIs.PREPARING, NewerIs.ALONE_SOON, NewerIs.READY)
    return not (
        (world.older_lives and (world.to_older or waits))
        or (world.newer_lives and (world.to_newer or prepares))
    )


def test_somebody_accepts() -> None:
    """Whoever is killed, as long as nobody was told to end, and somebody lives."""
    silent = [
        way
        for world, way in WORLDS.items()
        if at_rest(world)
        and not world.told
        and (world.older_lives or world.newer_lives)
        and not (world.older_accepts or world.newer_accepts)
    ]
    assert not silent


def test_one_death_does_not_end_the_gateway() -> None:
    """If both have ended, and only one was killed, the other one had ended before, or could not be."""
    for world, way in WORLDS.items():
        if world.older_lives or world.newer_lives or world.told:
            continue
        if world.killed == "newer":
            assert world.older is OlderIs.ENDED, way
        else:
            assert world.newer is NewerIs.ENDED or world.older is OlderIs.ALONE, way
            assert "newer fails" in way or world.older is OlderIs.ALONE, way


def test_all_goes_on_when_nobody_dies() -> None:
    world = World()
    for event in (Happening.PREPARED,):
        world = newer_does(world, event)
    seen = []
    for _ in range(20):
        if world.to_older:
            heard, *rest = world.to_older
            world = older_does(world._replace(to_older=tuple(rest)), heard)
        elif world.to_newer:
            heard, *rest = world.to_newer
            world = newer_does(world._replace(to_newer=tuple(rest)), heard)
        elif world.older is OlderIs.DRAINING:
            world = older_does(world._replace(older_clients=False), Happening.EMPTY)
        seen.append((world.older, world.newer))
    assert seen[-1] == (OlderIs.ENDED, NewerIs.ALONE)
    assert world.newer_accepts
    assert world.newer_has


def test_what_is_left_is_given_before_the_older_process_ends() -> None:
    """It ends by itself only if the newer one has all, or is dead, or does not take it in time."""
    for world, way in WORLDS.items():
        if world.older is OlderIs.ENDED and not world.told:
            assert world.newer_has or world.killed == "newer", way


def test_a_second_upgrade_is_refused() -> None:
    for state in OlderIs:
        if state not in (OlderIs.ALONE, OlderIs.ENDED, OlderIs.STOPPING, OlderIs.STOPPED):
            assert older_step(state, Happening.ASKED) == (state, (Act.REFUSE,))


@pytest.mark.parametrize("event", [Happening.FAILED, Happening.OTHER_DIED, Happening.STOP])
def test_until_it_is_ready_nothing_has_changed(event: Happening) -> None:
    state, acts = older_step(OlderIs.STARTING, event)
    assert (state, acts) == (OlderIs.ALONE, (Act.KILL_NEWER, Act.SAY_NOT_DONE))


def test_who_is_told_to_end_leaves_no_newer_one_that_is_not_ready() -> None:
    """It would keep the sockets, and if it hangs, for ever."""
    _state, acts = older_step(OlderIs.STARTING, Happening.TOLD)
    assert Act.KILL_NEWER in acts


def test_the_newer_process_ends_last() -> None:
    """Once it serves it is the main one, and whoever manages services kills what is left of one without its
    main process.
    """
    has_clients = (OlderIs.DRAINING, OlderIs.ENDING, OlderIs.STOPPING)
    waits = [(world, way) for world, way in WORLDS.items() if not world.killed and world.told]
    assert not [
        way
        for world, way in waits
        if world.newer is NewerIs.ENDED
        and world.older in has_clients
        and world.older_lives
        and "newer hears GO" in way
        and "newer waits too long" not in way
    ]


def test_every_row_is_reached() -> None:
    """A row that nothing leads to says something about a state that cannot be."""
    older = {(world.older, event) for world in WORLDS for event in world.to_older[:1]}
    by_itself = {
        Happening.ASKED,
        Happening.TOLD,
        Happening.EMPTY,
        Happening.DEADLINE,
        Happening.FAILED,
    }
    assert not [key for key in OLDER if key not in older and key[1] not in by_itself]
    newer = {(world.newer, event) for world in WORLDS for event in world.to_newer[:1]}
    by_itself = {Happening.PREPARED, Happening.FAILED, Happening.TOLD}
    assert not [key for key in NEWER if key not in newer and key[1] not in by_itself]
