"""nbd-gateway fleet: the gateways of a fleet, the homes of disks, and how a gateway gives its disks away."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from cyclopts import App, Parameter

if TYPE_CHECKING:
    from gateway.config import Config, Fleet
    from gateway.fleet.etcd import Etcd

fleet = App(
    name="fleet",
    help="Show the gateways of a fleet and the homes of disks; with a verb, have one give its disks away.",
)

LOOK_SECONDS = 0.5
"""How often it is asked how far a drain is: as often as the gateway says it."""

_Result = TypeVar("_Result")


@fleet.default
def show(
    *,
    json: Annotated[bool, Parameter(name="--json")] = False,
    config: Path = Path("gateway.toml"),
) -> int:
    """Show the gateways of a fleet, which disks have their home where, and which earlier homes are waited for.

    etcd is asked, and no gateway: it is what all of them go by. Nothing is changed.

    :param json: As one JSON object, for programs (docs/fleet.md has the names).
    :param config: The configuration, whose [fleet] says where etcd is. Default: gateway.toml.
    """

    def shown(loaded: Config) -> int:
        import trio

        from gateway.inspect.fleet import fleet_shown

        found = trio.run(fleet_shown, loaded)
        if json:
            import json as to_json

            print(to_json.dumps(found, indent=2))
        else:
            print(_text(found))
        return 0

    return _done(config, shown)


@fleet.command
def drain(
    name: str,
    /,
    *,
    deadline: float | None = None,
    no_wait: bool = False,
    config: Path = Path("gateway.toml"),
) -> int:
    """Have a gateway give its disks to the others in good order, and take none until undrain.

    Of each disk, what is under way is answered, and all is flushed; then another gateway is its home, and the
    clients that other gateways have led there go on with that. Clients that came in at the drained gateway
    itself keep their disk there until they leave, or until the deadline; then they are ended in good order.

    Waits until all disks have gone, and says meanwhile what moves, and what stays and why. Ctrl-C only ends the
    waiting. Also after a restart the gateway takes no disks. etcd is asked, from any machine.

    :param name: The gateway's name in the fleet.
    :param deadline: After how many seconds sessions end that keep their disk there. Default: never.
    :param no_wait: Only ask for it.
    :param config: The configuration, whose [fleet] says where etcd is. Default: gateway.toml.
    """
    from gateway.cli import INTERRUPTED, UsageError, complain

    if deadline is not None and not 0 <= deadline <= MOST_DEADLINE_SECONDS:
        raise UsageError(
            f"--deadline: expected from 0 to {MOST_DEADLINE_SECONDS:g} seconds, got {deadline:g}"
        )

    def drained(loaded: Config) -> int:
        try:
            return _with_etcd(loaded, partial(_drained, name, deadline, no_wait))
        except KeyboardInterrupt:
            complain(f"interrupted: {name} goes on giving its disks away, until undrain")
            return INTERRUPTED

    return _done(config, drained)


@fleet.command
def undrain(name: str, /, *, config: Path = Path("gateway.toml")) -> int:
    """Have a gateway have disks again, after a drain. Disks that have gone stay where they are.

    :param name: The gateway's name in the fleet.
    :param config: The configuration, whose [fleet] says where etcd is. Default: gateway.toml.
    """
    from gateway.cli import complain

    async def ask(etcd: Etcd, settings: Fleet) -> int:
        from gateway.fleet.draining import ask_to_undrain

        if not await ask_to_undrain(etcd, settings, name):
            complain(f"{name} is not drained")
            return 1
        print(f"{name} takes disks again")
        return 0

    return _done(config, lambda loaded: _with_etcd(loaded, ask))


MOST_DEADLINE_SECONDS = 86_400.0
"""A day, as for all durations of the configuration."""


async def _drained(
    name: str, deadline: float | None, no_wait: bool, etcd: Etcd, settings: Fleet
) -> int:
    import trio

    from gateway.cli import complain
    from gateway.fleet.answers import EtcdUnavailable
    from gateway.fleet.draining import ask_to_drain, how_far
    from gateway.fleet.home import NotNow

    said = ""
    try:
        number = await ask_to_drain(etcd, settings, name, deadline)
        while not no_wait:
            try:
                shown = await how_far(etcd, settings, name, number)
            except EtcdUnavailable as error:
                shown, line = None, f"etcd does not answer: {error}"
            else:
                line = "waiting for it" if shown is None else drained_in_words(shown)
            if line != said:
                said = line
                print(f"{name}: {line}", flush=True)
            if shown is not None and not shown.get("left") and not shown.get("moving"):
                return 0
            await trio.sleep(LOOK_SECONDS)
    except NotNow as error:
        complain(str(error))
        return 1
    print(f"{name} is told to give its disks away")
    return 0


def drained_in_words(shown: dict[str, Any]) -> str:
    """Say how far a gateway is that is drained, by what it says itself."""
    left = shown.get("left", 0)
    if not left and not shown.get("moving"):
        return f"all disks have gone ({shown.get('moved', 0)})"
    from gateway.plural import plural

    gone = plural(shown.get("moved", 0), "disk has", "disks have")
    words = [f"{gone} gone, {plural(left, 'is', 'are')} left"]
    words += [f"{each['disk']} {each['what']}" for each in shown.get("moving", ())]
    words += [f"{each['disk']} stays: {each['why']}" for each in shown.get("stays", ())]
    if more := shown.get("more"):
        words.append(f"{more} more stay")
    if (seconds := shown.get("sessions_end_in_seconds")) is not None and left:
        words.append(f"sessions end in {seconds} s")
    return "; ".join(words)


def _with_etcd(config: Config, ask: Callable[[Etcd, Fleet], Awaitable[_Result]]) -> _Result:
    """Ask the etcd of a configuration. Raises what etcd raises, and `EtcdNotOpened`."""
    import trio

    from gateway.fleet.opening import opened_etcd

    async def asked() -> _Result:
        assert config.fleet is not None
        async with opened_etcd(config.fleet) as etcd:
            return await ask(etcd, config.fleet)

    return trio.run(asked)


def _done(path: Path, ask: Callable[[Config], int]) -> int:
    """Do something with a configuration that has a [fleet]; say why it cannot be done; give the exit status."""
    from gateway.cli import complain
    from gateway.config import ConfigError, load

    try:
        loaded = load(path)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    if loaded.fleet is None:
        complain(f"{path} has no [fleet]")
        return 1
    try:
        from gateway.fleet.answers import EtcdRefused, EtcdUnavailable
    except ImportError as error:
        complain(f"this needs the extra fleet, pip install '.[fleet]': {error}")
        return 1
    from gateway.fleet.opening import EtcdNotOpened

    try:
        return ask(loaded)
    except EtcdNotOpened as error:
        complain(str(error))
    except EtcdUnavailable as error:
        complain(f"etcd does not answer: {error}")
    except EtcdRefused as error:
        complain(f"etcd refuses: {error}")
    return 1


def _text(shown: dict[str, Any]) -> str:
    from gateway.cli.showing import table

    gateways = [
        [
            each["gateway"],
            each.get("address", "?") if each["there"] else "is not there",
            str(each["homes"]),
            "" if each["drained"] is None else "drained",
        ]
        for each in shown["gateways"]
    ]
    disks = [
        [each["home"] or "none", ", ".join(each["before"]) or "nobody", each["disk"]]
        for each in shown["disks"]
    ]
    parts = [table(["gateway", "address", "homes", ""], gateways)]
    if disks:
        parts.append(table(["home", "waits for", "disk"], disks))
    parts += [
        f"{each['gateway']}: {drained_in_words(each['drained'])}"
        for each in shown["gateways"]
        if each["drained"]
    ]
    return "\n\n".join(parts)
