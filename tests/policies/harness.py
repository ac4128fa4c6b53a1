"""One policy by itself, over a disk in memory: what it shows, and what it does with requests.

What all policies do together, compiled and through the gateway, is tests/access and tests/interop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from gateway.identity import Identity
from gateway.policy import (
    HOOK_OF,
    Client,
    Cmd,
    Errno,
    Failed,
    Flag,
    Policy,
    Request,
    Result,
    Session,
    Table,
    View,
)
from gateway.protocol.commands import RefusedCommand
from gateway.wire.handshake import BlockSizes

KIB, MIB = 1 << 10, 1 << 20
EVERYTHING = (
    Flag.HAS_FLAGS
    | Flag.SEND_FLUSH
    | Flag.SEND_FUA
    | Flag.SEND_TRIM
    | Flag.SEND_WRITE_ZEROES
    | Flag.SEND_DF
    | Flag.CAN_MULTI_CONN
    | Flag.SEND_CACHE
    | Flag.SEND_FAST_ZERO
    | Flag.BLOCK_STATUS_PAYLOAD
)
ALLOCATION = "base:allocation"
ANY_SIZES = BlockSizes(1, 4096, 32 * MIB)


def view(
    size: int = MIB,
    flags: int = EVERYTHING,
    block_sizes: BlockSizes = ANY_SIZES,
    contexts: frozenset[str] = frozenset({ALLOCATION}),
    any_alignment: bool = True,
    description: str | None = None,
) -> View:
    """A view of an export that can do everything."""
    return View(
        size, int(flags), block_sizes, any_alignment, description=description, contexts=contexts
    )


def client(**proofs: Any) -> Client:
    """A client that comes on a Saturday at noon."""
    return Client(Identity(**proofs), datetime(2026, 11, 21, 12, tzinfo=UTC))


def session(export: str = "vm-1", **proofs: Any) -> Session:
    """A session of a client."""
    return Session(client(**proofs), export)


def configured(policy: type[Policy], options: Mapping[str, object]) -> Policy:
    """A policy as the configuration makes it: options have their names in kebab-case."""
    return policy.model_validate(options)


def table(policy: Policy, seen: View) -> Table:
    """What the policy says of commands, alone."""
    said = Table(policy.describe(seen).size)
    policy.commands(said)
    return said


def refused(policy: Policy, request: Request, seen: View | None = None) -> RefusedCommand | None:
    """Why the policy's table refuses a request, if it does."""
    said = table(policy, seen or view())
    return said[request.command].refusal(
        request.command, request.flags, request.offset, request.length
    )


@dataclass
class Disk:
    """What stands behind the policy: a server in memory that notes what it was asked."""

    content: bytearray = field(default_factory=lambda: bytearray(range(256)) * 4096)
    asked: list[Request] = field(default_factory=list)
    fails: dict[Cmd, Errno] = field(default_factory=dict)
    """Commands that fail."""

    async def __call__(self, request: Request) -> Result:
        self.asked.append(request)
        if request.command in self.fails:
            raise Failed(self.fails[request.command])
        assert request.end <= len(self.content), request
        match request.command:
            case Cmd.READ:
                return bytes(self.content[request.offset : request.end])
            case Cmd.WRITE:
                assert len(request.data) == request.length
                self.content[request.offset : request.end] = request.data
            case Cmd.WRITE_ZEROES | Cmd.TRIM:
                self.content[request.offset : request.end] = bytes(request.length)
            case Cmd.BLOCK_STATUS:
                return {name: [(request.length, 0)] for name in request.contexts}
        return None


async def do(policy: Policy, request: Request, disk: Disk, seen: View | None = None) -> Result:
    """Do a request through the policy's hook, if it has one for it and wants it."""
    if request.command not in policy.hooked(seen or view(len(disk.content))):
        return await disk(request)
    result: Result = await getattr(policy, HOOK_OF[request.command])(request, disk)
    return result
