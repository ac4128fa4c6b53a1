"""Any schedule of a bundle keeps every promise that is left when connections die; see `model`."""

from __future__ import annotations

import pytest

from gateway.jobs.fences import Fences
from gateway.losses.survival import Doubt, Unanswered
from tests.bundle import model
from tests.bundle.server import Broken
from tests.tools.shares import batches

pytestmark = pytest.mark.real

SCHEDULES = 1000
BATCH = 50


@pytest.mark.parametrize("first", batches(SCHEDULES, BATCH, ordinary=4 * BATCH))
def test_schedules(first: int) -> None:
    """`model.run(seed)` runs one of them again."""
    for seed in range(first, first + BATCH):
        try:
            model.run(seed)
        except Exception as error:
            pytest.fail(f"seed {seed}: {type(error).__name__}: {error}")


def test_the_schedules_have_everything() -> None:
    """Else they would say less than they seem to."""
    worlds = [model.run(seed) for seed in range(200)]
    said = {what for world in worlds for what in world.said}
    assert {world.doubt for world in worlds} == set(Doubt)
    assert {world.unknown for world in worlds} == set(Unanswered)
    assert {world.count for world in worlds} == {1, 2, 3, 4}
    assert sum(world.deaths for world in worlds) > 200
    assert sum(world.restarts for world in worlds) > 30
    assert sum(world.departures for world in worlds) > 100
    assert sum(world.taken_for_deadly for world in worlds) > 20
    assert sum(world.late_done for world in worlds) > 30
    assert sum(bool(world.history.losses) for world in worlds) > 20
    assert sum(world.given_up for world in worlds) > 1
    assert sum(world.adopted for world in worlds) > 3
    assert sum(world.fenced for world in worlds) > 20
    assert sum(world.server.has_failed for world in worlds) > 3
    for part in ("all there", "written again", "issued again", "are there", "durable"):
        assert any(part in what for what in said), part


@pytest.mark.parametrize(
    ("doubt", "gives_up"),
    [(Doubt.REPLAY, True), (Doubt.VERIFY, False), (Doubt.ASSUME_DURABLE, True)],
)
def test_schedules_in_which_recoveries_die_again_and_again(doubt: Doubt, gives_up: bool) -> None:
    """Until they give up, where that is a loss by itself (and to be told)."""
    given_up = 0
    for seed in range(60):
        world = model.World(seed, doubt)
        world.deadly = 0.1
        world.run()
        given_up += world.history.given_up
    assert (given_up > 5) is gives_up


@pytest.mark.parametrize("doubt", Doubt)
def test_a_server_that_forgets_is_found_out(doubt: Doubt) -> None:
    """One that answers FLUSH and does nothing: the model can tell."""
    found = 0
    for seed in range(60):
        world = model.World(seed, doubt)
        world.server.flush = lambda covers: 0  # type: ignore[method-assign]
        try:
            world.run()
        except Broken:
            found += 1
    assert found > 10


def test_schedules_in_which_the_same_is_written_again_and_again() -> None:
    for seed in range(100):
        model.World(seed, Doubt.ASSUME_DURABLE, repeats=True).run()


def test_a_write_that_comes_once_more_over_a_newer_one_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without fences it does, in one schedule of a hundred: the model can tell."""
    monkeypatch.setattr(Fences, "add", lambda *_fence: None)

    def keeps_its_promises(seed: int) -> bool:
        try:
            model.World(seed, Doubt.ASSUME_DURABLE, repeats=True).run()
        except Broken:
            return False
        return True

    assert not all(keeps_its_promises(seed) for seed in range(2000))
