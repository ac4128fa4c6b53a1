"""nbd-gateway fleet: the gateways of a fleet, and the homes of disks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter


def fleet(
    *,
    json: Annotated[bool, Parameter(name="--json")] = False,
    config: Path = Path("gateway.toml"),
) -> int:
    """Show the gateways of a fleet, which disks have their home where, and which earlier homes are waited for.

    etcd is asked, and no gateway: it is what all of them go by. Nothing is changed.

    :param json: As one JSON object, for programs (docs/fleet.md has the names).
    :param config: The configuration, whose [fleet] says where etcd is. Default: gateway.toml.
    """
    import trio

    from gateway.config import ConfigError, load

    try:
        loaded = load(config)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    from gateway.cli import complain

    if loaded.fleet is None:
        complain(f"{config} has no [fleet]")
        return 1
    try:
        from gateway.fleet.etcd import EtcdRefused, EtcdUnavailable
    except ImportError as error:
        complain(f"this needs the extra fleet, pip install '.[fleet]': {error}")
        return 1
    from gateway.fleet.opening import EtcdNotOpened
    from gateway.inspect.fleet import fleet_shown

    try:
        shown = trio.run(fleet_shown, loaded)
    except EtcdNotOpened as error:
        complain(str(error))
        return 1
    except EtcdUnavailable as error:
        complain(f"etcd does not answer: {error}")
        return 1
    except EtcdRefused as error:
        complain(f"etcd refuses: {error}")
        return 1
    if json:
        import json as to_json

        print(to_json.dumps(shown, indent=2))
    else:
        print(_text(shown))
    return 0


def _text(shown: dict[str, Any]) -> str:
    from gateway.cli.showing import table

    gateways = [
        [each["gateway"], each.get("address", "?"), str(each["homes"])]
        for each in shown["gateways"]
    ]
    disks = [
        [each["home"] or "none", ", ".join(each["before"]) or "nobody", each["disk"]]
        for each in shown["disks"]
    ]
    parts = [table(["gateway", "address", "homes"], gateways)]
    if disks:
        parts.append(table(["home", "waits for", "disk"], disks))
    return "\n\n".join(parts)
