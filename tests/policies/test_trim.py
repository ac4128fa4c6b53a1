import pytest
from pydantic import ValidationError

from gateway.policy import Cmd, CmdFlag, Errno, Failed, Flag, Request
from policies.trim import Trim
from tests.policies.harness import EVERYTHING, Disk, configured, do, table, view

TRIM, ZEROES, RO = Flag.SEND_TRIM, Flag.SEND_WRITE_ZEROES, Flag.READ_ONLY
NEITHER = EVERYTHING & ~TRIM & ~ZEROES
HOOK = {Cmd.TRIM}


@pytest.mark.parametrize(
    ("how", "flags", "offered", "hooked"),
    [
        ("native", EVERYTHING, EVERYTHING, set()),
        ("native", NEITHER, NEITHER, set()),
        ("none", EVERYTHING, EVERYTHING & ~TRIM, set()),
        ("none", NEITHER, NEITHER, set()),
        ("zero", EVERYTHING, EVERYTHING, HOOK),
        ("zero", NEITHER | ZEROES, EVERYTHING, HOOK),
        ("zero", NEITHER | TRIM, NEITHER, set()),
        ("nop", EVERYTHING, EVERYTHING, HOOK),
        ("nop", NEITHER, NEITHER | TRIM, HOOK),
        *((how, NEITHER | RO, NEITHER | RO, set()) for how in ("native", "none", "zero", "nop")),
    ],
)
def test_what_is_offered(how: str, flags: int, offered: int, hooked: set[Cmd]) -> None:
    policy = configured(Trim, {"how": how})
    assert policy.describe(view(flags=flags)) == view(flags=offered)
    assert set(policy.hooked(view(flags=flags))) == hooked
    assert not table(policy, view(flags=flags)).rows


@pytest.mark.parametrize("fua", [0, int(CmdFlag.FUA)])
async def test_zero(fua: int) -> None:
    disk = Disk()
    before = bytes(disk.content)
    policy = configured(Trim, {"how": "zero"})
    assert await do(policy, Request(Cmd.TRIM, 1001, 5000, fua), disk) is None
    assert disk.asked == [Request(Cmd.WRITE_ZEROES, 1001, 5000, fua)]
    assert disk.content == before[:1001] + bytes(5000) + before[6001:]


async def test_zero_that_fails() -> None:
    disk = Disk(fails={Cmd.WRITE_ZEROES: Errno.ENOSPC})
    with pytest.raises(Failed) as caught:
        await do(configured(Trim, {"how": "zero"}), Request(Cmd.TRIM, 0, 512), disk)
    assert caught.value.error is Errno.ENOSPC


async def test_nop_does_nothing() -> None:
    disk = Disk()
    policy = configured(Trim, {"how": "nop"})
    assert await do(policy, Request(Cmd.TRIM, 0, 512, int(CmdFlag.FUA)), disk) is None
    assert not disk.asked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "how"),
        ({"how": "emulate"}, "'native', 'none', 'zero' or 'nop'"),
        ({"mode": ""}, "mode"),
    ],
)
def test_mistakes(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        configured(Trim, options)
    assert message in str(caught.value)
