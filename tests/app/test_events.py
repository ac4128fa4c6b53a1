"""What the log says of one thing is one value in all events: who searches for an export finds all of it."""

from __future__ import annotations

from pathlib import Path

from .houses import LISTEN, MEMORY, house, until

DISKS = "".join(
    f'[[export]]\nname = "{name}"\nupstream = "m"\nupstream-name = ""\n'
    for name in ("a", "shut", "it's\\u001b[2J")
)
RULES = (
    '[[rule]]\nname = "shut"\nexports = "shut"\ndeny = true\n'
    '[[rule]]\nname = "rw"\nexports = "a"\n'
    '[[rule]]\nexports = "*"\n'
)
TEXT = LISTEN + MEMORY + DISKS + RULES


async def test_names_are_values_of_their_own(workdir: Path) -> None:
    async with house(workdir, TEXT) as gateway:
        await gateway.session("a")
        await gateway.session("it's\x1b[2J")
        client = await gateway.client()
        await client.greeting()
        client.negotiation.go("shut", ())
        await client.refused()
        await until(lambda: len(gateway.events("session begins")) == 2)
        begun = {line["export"]: line["rule"] for line in gateway.events("session begins")}
        [denied] = gateway.events("access denied")
        assert (denied["export"], denied["why"]) == ("shut", "rule 'shut' denies it")
        assert denied["log_level"] == "warning"
    assert begun == {"a": "rw", "it's\x1b[2J": 3}  # `gateway.log` makes it safe
