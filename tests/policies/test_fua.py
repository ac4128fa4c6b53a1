import pytest
from pydantic import ValidationError

from gateway.policy import WRITE_CLASS, Cmd, CmdFlag, Denied, Errno, Failed, Flag, Request
from policies.fua import Fua
from tests.policies.harness import EVERYTHING, Disk, configured, do, table, view

FLUSH, FUA, MULTI = Flag.SEND_FLUSH, Flag.SEND_FUA, Flag.CAN_MULTI_CONN
BOTH = EVERYTHING
NO_FUA, NO_FLUSH = BOTH & ~FUA, BOTH & ~FLUSH
NEITHER = NO_FUA & ~FLUSH
F = int(CmdFlag.FUA)
HOW = ("native", "pass", "none", "emulate", "force", "discard")


def policy(how: str) -> Fua:
    unsafe = {"unsafe": True} if how == "discard" else {}
    made = configured(Fua, {"how": how, **unsafe})
    assert isinstance(made, Fua)
    return made


@pytest.mark.parametrize(
    ("how", "flags", "offered", "hooked"),
    [
        ("native", BOTH, BOTH, set()),
        ("native", NO_FLUSH, NO_FLUSH, set()),
        ("native", NO_FUA, "needs SEND_FUA", set()),
        ("pass", BOTH, BOTH, set()),
        ("pass", NO_FUA, NO_FUA, set()),
        ("pass", NEITHER, NEITHER, set()),
        ("none", BOTH, NO_FUA, set()),
        ("none", NO_FUA, NO_FUA, set()),
        ("none", NO_FLUSH, "no SEND_FLUSH instead", set()),
        ("none", NEITHER, NEITHER, set()),
        ("emulate", BOTH, BOTH, WRITE_CLASS),
        ("emulate", NO_FUA, BOTH, WRITE_CLASS),
        ("emulate", NO_FLUSH, "needs SEND_FLUSH", set()),
        ("force", BOTH, BOTH, set()),
        ("force", NO_FLUSH, BOTH, {Cmd.FLUSH}),
        ("force", NO_FUA, "needs SEND_FUA", set()),
        ("discard", BOTH, BOTH & ~MULTI, {Cmd.FLUSH}),
        ("discard", NEITHER, BOTH & ~MULTI, {Cmd.FLUSH}),
        *((how, NEITHER | Flag.READ_ONLY, NEITHER | Flag.READ_ONLY, set()) for how in HOW),
    ],
)
def test_what_is_offered(how: str, flags: int, offered: int | str, hooked: set[Cmd]) -> None:
    seen = view(flags=flags)
    if isinstance(offered, str):
        with pytest.raises(Denied, match=offered):
            policy(how).describe(seen)
        return
    assert policy(how).describe(seen) == view(flags=offered)
    assert set(policy(how).hooked(seen)) == hooked


def test_none_without_flush_has_to_be_confirmed() -> None:
    confirmed = configured(Fua, {"how": "none", "unsafe": True})
    assert confirmed.describe(view(flags=NO_FLUSH)) == view(flags=NEITHER)


@pytest.mark.parametrize(
    ("how", "plain", "durable"),
    [
        # The command flags that go on without FUA, and with it.
        ("native", 0, F),
        ("pass", 0, F),
        ("none", 0, F),
        ("emulate", 0, F),
        ("force", F, F),
        ("discard", 0, 0),
    ],
)
def test_command_flags(how: str, plain: int, durable: int) -> None:
    said = table(policy(how), view())
    for command in WRITE_CLASS:
        assert said[command].passed_flags(0) == plain
        assert said[command].passed_flags(F) == durable
        assert said[command].passed_flags(CmdFlag.NO_HOLE) == plain | CmdFlag.NO_HOLE
    assert said[Cmd.READ].passed_flags(0) == 0


REQUESTS = [
    Request(Cmd.WRITE, 7, 3, 0, b"abc"),
    Request(Cmd.WRITE_ZEROES, 7, 3, int(CmdFlag.NO_HOLE)),
    Request(Cmd.TRIM, 7, 3),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request.command.name)
async def test_emulate_flushes_after_the_write(request_: Request) -> None:
    disk = Disk()
    await do(policy("emulate"), request_, disk)
    assert disk.asked == [request_]
    disk.asked.clear()
    durable = Request(
        request_.command, request_.offset, request_.length, request_.flags | F, request_.data
    )
    assert await do(policy("emulate"), durable, disk) is None
    assert disk.asked == [request_, Request(Cmd.FLUSH)]


async def test_emulate_does_not_flush_for_a_write_that_failed() -> None:
    disk = Disk(fails={Cmd.WRITE: Errno.EIO})
    with pytest.raises(Failed) as caught:
        await do(policy("emulate"), Request(Cmd.WRITE, 0, 1, F, b"a"), disk)
    assert caught.value.error is Errno.EIO
    assert [request.command for request in disk.asked] == [Cmd.WRITE]


async def test_a_flush_that_fails_fails_the_write() -> None:
    disk = Disk(fails={Cmd.FLUSH: Errno.ENOSPC})
    with pytest.raises(Failed) as caught:
        await do(policy("emulate"), Request(Cmd.WRITE, 0, 1, F, b"a"), disk)
    assert caught.value.error is Errno.ENOSPC


@pytest.mark.parametrize(
    ("how", "flags", "asked"),
    [
        ("discard", BOTH, []),
        ("force", NO_FLUSH, []),
        ("force", BOTH, [Cmd.FLUSH]),
        ("emulate", BOTH, [Cmd.FLUSH]),
    ],
)
async def test_flush(how: str, flags: int, asked: list[Cmd]) -> None:
    disk = Disk()
    assert await do(policy(how), Request(Cmd.FLUSH), disk, view(flags=flags)) is None
    assert [request.command for request in disk.asked] == asked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "how"),
        (
            {"how": "discard"},
            'how = "discard" loses what clients believe to be durable: expected unsafe',
        ),
        ({"how": "force", "unsafe": True}, 'expected no unsafe = true with how = "force"'),
        ({"how": "always"}, "'native', 'pass', 'none', 'emulate', 'force' or 'discard'"),
        ({"mode": "none"}, "mode"),
    ],
)
def test_mistakes(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        configured(Fua, options)
    assert message in str(caught.value)
