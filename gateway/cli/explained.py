"""What `explain --json` prints."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.identity import Identity
    from gateway.inspect.report import (
        Explanation,
        Report,
        Restriction,
    )
    from gateway.wire.handshake import BlockSizes


def document(found: Report) -> dict[str, object]:
    """Give what was found as JSON has it; docs/explain.md has the keys."""
    from gateway.wire.constants import Rep, name_of

    grant, refusal = found.grant, found.refusal
    return {
        "export": found.asked,
        "client": _client_document(found.client.identity),
        "at": found.client.at.isoformat(),
        "tried": [{"rule": label, "why": why} for label, why in found.tried],
        "rule": grant.rule or None if grant is not None else None,
        "denied": None
        if refusal is None
        else {
            "why": found.why,
            "told": name_of(Rep, refusal.reply),
            "text": refusal.text,
            "disconnect": found.disconnect,
        },
        "name": None if grant is None else grant.name,
        "upstream": None
        if grant is None
        else {
            "name": grant.route.upstream,
            "export": grant.route.upstream_name,
            "uris": [*found.uris],
        },
        "connections": None if grant is None else _connections_document(found),
        "home": None
        if found.home is None
        else {
            "worker": found.home.worker,
            "workers": found.home.workers,
            "of": found.home.of,
            "why": found.home.why,
            "fleet": found.home.in_fleet,
            "longest_wait": found.home.longest_wait,
            "lives_on": found.home.lives_on,
        },
        "policies": [
            {
                "use": placed.name,
                "mode": "observe" if placed.observed else "enforce",
                "options": {key: _json(value) for key, value in placed.options.items()},
            }
            for placed in (() if grant is None else grant.chain)
        ],
        "would": [*found.would],
        "contexts": [
            {"name": each.name, "by": each.by, "fails": each.fails, "would": each.would}
            for each in found.contexts
        ],
        "limits": [
            {
                "policy": each.policy,
                "mode": "observe" if each.observed else "enforce",
                "in_flight": each.in_flight,
                "rates": [
                    {"unit": unit.value, "per_second": bucket.per_second, "burst": bucket.burst}
                    for bucket, unit in each.charges
                ],
            }
            for each in found.limits
        ],
        "gone": found.gone or None,
        "framings": {str(each.client): _view_document(each) for each in found.views},
    }


def _connections_document(found: Report) -> dict[str, object]:
    had = found.views[-1].connections if found.views else None
    return {
        "wanted": str(found.wanted),
        "required": found.required,
        "shared": found.wanted.shared,
        "count": None if had is None else had.count,
        "reason": None if had is None else had.reason or None,
    }


def _json(value: object) -> object:
    import json

    return json.loads(in_json(value)) if isinstance(value, list | dict) else value


def _client_document(identity: Identity) -> dict[str, object]:
    return {
        "who": identity.describe(),
        "address": None if identity.address is None else str(identity.address),
        "unix_user": None if identity.unix is None else identity.unix.uid,
        "psk_user": identity.psk_user,
        "cn": [*identity.common_names],
        "issuer_cn": [*identity.issuer_common_names],
        "san_dns": [*identity.dns_names],
        "san_uri": [*identity.uris],
        "fingerprint": identity.fingerprint,
        "tls": identity.tls,
    }


def _view_document(view: Explanation) -> dict[str, object]:
    from gateway.cli.probe import flag_names

    told = view.told
    return {
        "link": str(view.link),
        "quirks": [*view.quirks],
        "steps": [
            {
                "name": step.name,
                "size": step.size,
                "base": step.base,
                "flags": flag_names(step.flags).split(),
                "block_sizes": _sizes_document(step.block_sizes),
                "description": step.description,
            }
            for step in view.steps
        ],
        "size": told.size,
        "base": view.promised.base,
        "flags": flag_names(told.flags).split(),
        "block_sizes": _sizes_document(told.block_sizes),
        "name": told.name,
        "description": told.description,
        "contexts": [context.name for context in view.promised.contexts],
        "commands": {
            command.name: {
                "route": way.handling.value,
                "reason": way.reason,
                "restrictions": _restrictions_document(view.restrictions.get(command, ())),
                "would": _restrictions_document(view.would_restrict.get(command, ())),
            }
            for command, way in view.ways.items()
        },
        "would": [*view.would],
    }


def _sizes_document(sizes: BlockSizes | None) -> list[int] | None:
    return None if sizes is None else [sizes.minimum, sizes.preferred, sizes.maximum]


def _restrictions_document(several: Iterable[Restriction]) -> list[dict[str, object]]:
    return [{"what": each.what, "error": each.error, "why": each.why} for each in several]


def in_json(value: object) -> str:
    """Give an option of a policy as JSON has it."""
    import json

    return json.dumps(value, default=str, ensure_ascii=False)
