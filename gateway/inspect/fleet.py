"""What etcd knows of a fleet, for who serves nobody: its gateways, the homes of disks, who has to be waited
for, and which gateways are drained. Nothing is changed.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from gateway.config import Config
from gateway.fleet.answers import EtcdKey
from gateway.fleet.draining import shown_of
from gateway.fleet.keys import FleetKeys, NotSaid, run_said
from gateway.fleet.opening import opened_etcd
from gateway.fleet.record import NotARecord, record_of


async def fleet_shown(config: Config) -> dict[str, Any]:
    """Give what there is: `gateways` and `disks`. Raises `EtcdNotOpened`, `EtcdUnavailable`, `EtcdRefused`."""
    assert config.fleet is not None
    keys = FleetKeys(config.fleet.prefix)
    async with opened_etcd(config.fleet) as etcd:
        # Homes last: a home that is there has its record, but not the other way about.
        members, _revision = await etcd.below(keys.members)
        drains, _revision = await etcd.below(keys.drains)
        moves, _revision = await etcd.below(keys.moves)
        records, _revision = await etcd.below(keys.records)
        homes, _revision = await etcd.below(keys.homes)
    before = {each.key.removeprefix(keys.records): _writers(each) for each in records}
    disks = []
    for each in homes:
        disk = each.key.removeprefix(keys.homes)
        said = _said(each)
        writers = [name for name in before.pop(disk, []) if name != said.get("gateway")]
        disks.append(
            {"disk": said.get("disk", disk), "home": said.get("gateway"), "before": writers}
        )
    disks += [
        {"disk": disk, "home": None, "before": writers}
        for disk, writers in before.items()
        if writers
    ]
    count = Counter(each["home"] for each in disks)
    drained: dict[str, dict[str, Any]] = {each.key.removeprefix(keys.drains): {} for each in drains}
    for each in moves:
        if (name := each.key.removeprefix(keys.moves)) in drained:
            drained[name] = shown_of(each.value)
    gateways: list[dict[str, Any]] = []
    for each in members:
        name = each.key.removeprefix(keys.members)
        said = {"gateway": name, **_said(each), "homes": count[name]}
        gateways.append({**said, "there": True, "drained": drained.pop(name, None)})
    gateways += [
        {"gateway": name, "homes": count[name], "there": False, "drained": far}
        for name, far in drained.items()
    ]
    return {"gateways": gateways, "disks": disks}


def _said(key: EtcdKey) -> dict[str, Any]:
    try:
        run, more = run_said(key.value)
    except NotSaid:
        return {}
    return {"gateway": run.gateway, "run": run.run, "address": run.address, **more}


def _writers(key: EtcdKey) -> list[str]:
    try:
        return [each.gateway for each in record_of(key.value).writers]
    except NotARecord:
        return ["?"]  # nobody can take the disk, and whoever asks for it is told why
