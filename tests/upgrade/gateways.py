"""Gateways in this process that take each other's place, before a server that does all at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

from gateway.protocol.client_role import Refused
from gateway.wire.constants import Cmd
from gateway.wire.limits import KIB
from tests.embedded.peers import Client
from tests.tools.schedules.house import House, house, in_no_time
from tests.tools.schedules.settings import Settings

PLAIN = Settings(held=0.0)


@asynccontextmanager
async def gateways(
    workdir: Path, more: str = "", settings: Settings = PLAIN
) -> AsyncIterator[House]:
    """One gateway, and those that come after it. `more` is said by its configuration as well."""
    with in_no_time():
        async with house(settings, workdir, Random(0), more) as made:
            yield made


async def opened(made: House, export: str = "x") -> Client:
    """A client that has opened an export."""
    client = made.connect()
    await client.go(export, structured=False)
    return client


async def refused(made: House, export: str) -> Refused:
    """What one hears who does not get it."""
    client = made.connect()
    async with client.stream:
        await client.structured()
        client.negotiation.go(export, ())
        return await client.refused()


async def read(client: Client) -> None:
    """Read what nobody has written."""
    await client.send(Cmd.READ, 0, KIB, cookie=7)
    assert await client.simple_reply() == (7, 0, bytes(KIB))


async def done(made: House, verb: str, **arguments: object) -> tuple[str, ...]:
    """Have something done, which has to succeed."""
    named = {key.rstrip("_").replace("_", "-"): value for key, value in arguments.items()}
    answer = await made.ask(verb, **named)
    assert answer.ok, answer.problems
    return answer.done


async def not_done(made: House, verb: str, **arguments: object) -> str:
    """Have something refused."""
    named = {key.rstrip("_").replace("_", "-"): value for key, value in arguments.items()}
    answer = await made.ask(verb, **named)
    assert not answer.ok, answer.done
    return "; ".join(answer.problems)
