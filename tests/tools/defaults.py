"""What holds for an upstream of which the configuration says nothing, and what a test would have otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from gateway.bundle.core import Bundle
from gateway.config import Upstream
from gateway.config.connections import Connections
from gateway.jobs.fences import Fences
from gateway.losses.rule import Trail
from gateway.losses.survival import Survival
from gateway.protocol.export import Export
from gateway.upstream.mode import Mode, mode_of

MODE = mode_of(Upstream())
SURVIVAL = MODE.survival


def mode_with(wanted: Connections = MODE.wanted, *, survival: Survival = SURVIVAL) -> Mode:
    return replace(MODE, wanted=wanted, survival=survival)


def bundle_of(
    export: Export,
    count: int,
    trail: Trail,
    *,
    clock: Callable[[], float] = lambda: 0.0,
    stripe_bytes: int = MODE.stripe,
    strong: bool = MODE.strong,
    survival: Survival = SURVIVAL,
    say: Callable[[str, Mapping[str, object]], None] = lambda _what, _details: None,
    changed: Callable[[], None] = lambda: None,
    fences: Fences | None = None,
) -> Bundle:
    return Bundle(
        export,
        count,
        trail,
        clock=clock,
        stripe_bytes=stripe_bytes,
        strong=strong,
        survival=survival,
        say=say,
        changed=changed,
        fences=fences,
    )
