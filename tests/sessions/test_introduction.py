"""A gateway says that it is one, and which, to who asks for exactly that; nobody else is sent a byte more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

import gateway
from gateway.embedded import PERSONALITIES, MemoryDisk, Server
from gateway.protocol import introduction
from gateway.wire.constants import BASE_ALLOCATION, Rep
from gateway.wire.limits import MIB
from tests.embedded.peers import Client
from tests.sessions.gateways import gateway_before

HERE = f"x-nbd-gateway:version={gateway.__version__}"
HIDING = """
[[export]]
name = "open"
upstream = "main"
[[export]]
name = "hidden"
upstream = "main"
hide = true
policies = [ {policies} ]
{rules}
"""


def noting(personality: str = "plain", names: Sequence[str] = ("",)) -> Server:
    return Server({name: MemoryDisk(MIB) for name in names}, PERSONALITIES[personality])


async def contexts(
    client: Client, *queries: str, name: str = "", select: bool = False
) -> list[str]:
    client.negotiation.ask_contexts(name, queries, select=select)
    return [context.name for context in (await client.answered()).contexts]


@pytest.mark.parametrize("personality", PERSONALITIES)
async def test_who_asks_is_told_the_version_whatever_the_server(personality: str) -> None:
    async with gateway_before(noting(personality)) as there:
        client = there.client()
        async with client.stream:
            await client.structured()
            assert await contexts(client, introduction.QUERY) == [HERE]
            assert introduction.version_in([HERE]) == gateway.__version__


@pytest.mark.parametrize(
    "queries",
    [
        (),
        (BASE_ALLOCATION,),
        ("base:", "qemu:", "x-nbd-gateway:", "x-nbd-gateway:version="),
        ("X-NBD-GATEWAY:VERSION", "x-nbd-gateway", "x-nbd-gateway:versions"),
    ],
)
async def test_no_other_question_has_it_in_the_answer(queries: tuple[str, ...]) -> None:
    async with gateway_before(noting()) as there:
        client = there.client()
        async with client.stream:
            await client.structured()
            assert not [name for name in await contexts(client, *queries) if "gateway" in name]


async def test_it_cannot_be_selected() -> None:
    async with gateway_before(noting()) as there:
        client = there.client()
        async with client.stream:
            await client.structured()
            both = (introduction.QUERY, BASE_ALLOCATION)
            assert await contexts(client, *both, select=True) == [BASE_ALLOCATION]
            assert await contexts(client, *both) == [HERE, BASE_ALLOCATION]
            client.negotiation.go("", ())
            await client.answered()


async def test_the_server_is_not_asked_for_it() -> None:
    """Nor without a query, which asks for all contexts."""
    would_answer = replace(PERSONALITIES["plain"], contexts=(BASE_ALLOCATION, introduction.QUERY))
    async with gateway_before(Server({"": MemoryDisk(MIB)}, would_answer)) as there:
        client = there.client()
        async with client.stream:
            await client.structured()
            assert await contexts(client, introduction.QUERY) == [HERE]
            assert await contexts(client, BASE_ALLOCATION, introduction.QUERY) == [
                HERE,
                BASE_ALLOCATION,
            ]


@pytest.mark.parametrize(
    ("policies", "rules"),
    [
        ("", '[[rule]]\nexports = "open"'),
        ("", '[[rule]]\nexports = "open"\n[[rule]]\ndeny = true'),
        ('{ use = "schedule", until = 2020-01-01 }', ""),
        ('{ use = "window", offset = "1G", size = "1M" }', ""),
        ('{ use = "window", partition = 3 }', ""),
    ],
    ids=["no rule", "a rule", "join", "describe", "prepare"],
)
async def test_who_may_not_know_of_an_export_does_not_learn_of_it(
    policies: str, rules: str
) -> None:
    config = HIDING.format(policies=policies, rules=rules)
    server = noting(names=("open", "hidden"))
    async with gateway_before(server, upstream=config) as there:
        client = there.client()
        async with client.stream:
            await client.structured()
            assert await contexts(client, introduction.QUERY, name="open") == [HERE]
            told = []
            for name in ("hidden", "absent"):
                client.negotiation.ask_contexts(name, [introduction.QUERY], select=False)
                refused = await client.refused()
                told.append((refused.reply, refused.text.replace(name, "NAME")))
            assert told[0] == told[1]
            assert told[0][0] == Rep.ERR_UNKNOWN


async def test_a_policy_can_keep_it_back() -> None:
    for deny, told in (('["x-*"]', []), ('["qemu:*"]', [HERE])):
        export = f'policies = [ {{ use = "contexts", deny = {deny} }} ]'
        async with gateway_before(noting(), export=export) as there:
            client = there.client()
            async with client.stream:
                await client.structured()
                assert await contexts(client, introduction.QUERY) == told


@pytest.mark.parametrize(
    "answer",
    ["", "=", "=1\x1b[2J", "=1 2", f"={'1' * 65}", "=1\n"],
)
def test_what_is_no_version_says_nothing(answer: str) -> None:
    assert introduction.version_in([introduction.QUERY + answer, BASE_ALLOCATION]) is None
