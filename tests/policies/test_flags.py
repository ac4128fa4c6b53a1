import pytest
from pydantic import ValidationError

from gateway.policy import WRITE_CLASS, CmdFlag, Denied, Flag, View
from policies.flags import Flags
from tests.policies.harness import EVERYTHING, configured, table, view

FLUSH, FUA, RO = Flag.SEND_FLUSH, Flag.SEND_FUA, Flag.READ_ONLY


@pytest.mark.parametrize("flag", sorted(set(Flag) - {Flag.READ_ONLY, Flag.HAS_FLAGS}))
def test_a_masked_flag_is_not_offered_and_no_other_is_lost(flag: Flag) -> None:
    seen = view(flags=int(sum(Flag)))
    policy = configured(Flags, {"mask": [flag.name], "unsafe": True})
    assert policy.describe(seen) == View(
        seen.size, seen.flags & ~flag, seen.block_sizes, contexts=seen.contexts
    )
    assert not policy.hooked(seen)


def test_without_options_all_stays_as_it_is() -> None:
    assert Flags().describe(view()) == view()
    assert not table(Flags(), view()).rows


@pytest.mark.parametrize("flag", list(Flag))
def test_a_required_flag_has_to_be_there(flag: Flag) -> None:
    policy = configured(Flags, {"require": [flag.name]})
    # SEND_FAST_ZERO and others are not offered without what they build on.
    there = view(flags=flag | Flag.SEND_WRITE_ZEROES)
    assert policy.describe(there) == there
    with pytest.raises(
        Denied, match=rf"{flag.name} is required here, and the export has SEND_\w+$"
    ):
        policy.describe(view(flags=Flag.SEND_RESIZE if flag is not Flag.SEND_RESIZE else FLUSH))


@pytest.mark.parametrize(
    ("flag", "flags"),
    [
        ("SEND_TRIM", Flag.SEND_TRIM | RO),
        ("SEND_WRITE_ZEROES", Flag.SEND_WRITE_ZEROES | RO),
        ("SEND_FAST_ZERO", Flag.SEND_FAST_ZERO),
    ],
)
def test_what_would_not_be_offered_is_not_there(flag: str, flags: Flag) -> None:
    with pytest.raises(Denied, match=f"{flag} is required"):
        configured(Flags, {"require": [flag]}).describe(view(flags=flags))


@pytest.mark.parametrize(
    ("mask", "flags", "through"),
    [
        # A client without FLUSH believes that there is nothing to flush: that has to be so.
        ([FLUSH], FLUSH | FUA, True),
        ([FLUSH, FUA], FLUSH | FUA, True),
        ([FLUSH], FUA, True),
        ([FUA], FLUSH | FUA, False),
        ([FUA], FLUSH, False),
        ([FUA], Flag.HAS_FLAGS, False),
        ([Flag.CAN_MULTI_CONN], FLUSH | FUA, False),
    ],
)
def test_without_flush_it_is_written_through(mask: list[Flag], flags: int, through: bool) -> None:
    seen = view(flags=flags)
    policy = configured(Flags, {"mask": [flag.name for flag in mask]})
    assert policy.describe(seen).flags == flags & ~sum(mask)
    said = table(policy, seen)
    for command in WRITE_CLASS:
        assert said[command].passed_flags(0) == (CmdFlag.FUA if through else 0)


NOT_DURABLE = [
    ([FLUSH], FLUSH, "SEND_FLUSH is masked, and the export has no SEND_FUA"),
    ([FLUSH], Flag.HAS_FLAGS, "SEND_FLUSH is masked, and the export has no SEND_FUA"),
    ([FLUSH, FUA], FLUSH, "SEND_FLUSH is masked, and the export has no SEND_FUA"),
    ([FUA], FUA, "SEND_FUA is masked, and the export has no SEND_FLUSH"),
]


@pytest.mark.parametrize(("mask", "flags", "why"), NOT_DURABLE)
def test_a_client_that_could_make_nothing_durable_is_denied(
    mask: list[Flag], flags: int, why: str
) -> None:
    names = [flag.name for flag in mask]
    with pytest.raises(Denied, match=why):
        configured(Flags, {"mask": names}).describe(view(flags=flags))
    read_only = configured(Flags, {"mask": names}).describe(view(flags=flags | RO))
    assert read_only.flags == (flags | RO) & ~sum(mask)
    unsafe = configured(Flags, {"mask": names, "unsafe": True})
    assert unsafe.describe(view(flags=flags)).flags == flags & ~sum(mask)
    assert not table(unsafe, view(flags=flags)).rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": ["SEND_FLUHS"]}, 'got "SEND_FLUHS", did you mean "SEND_FLUSH"?'),
        ({"mask": ["NBD_FLAG_SEND_FUA"]}, 'did you mean "SEND_FUA"?'),
        ({"require": ["can_multi_conn"]}, 'did you mean "CAN_MULTI_CONN"?'),
        ({"mask": ["XYZ"]}, 'got "XYZ" (there are HAS_FLAGS, READ_ONLY, SEND_FLUSH,'),
        ({"mask": [4]}, 'expected a transmission flag, got "4"'),
        ({"mask": ["READ_ONLY"]}, "READ_ONLY cannot be masked: it would promise writes"),
        ({"mask": ["HAS_FLAGS"]}, "HAS_FLAGS cannot be masked: every export has it"),
        (
            {"mask": ["SEND_DF"], "require": ["SEND_DF"]},
            "expected SEND_DF in mask or in require, got it in both",
        ),
        ({"maks": []}, "maks"),
    ],
)
def test_mistakes(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        configured(Flags, options)
    assert message in str(caught.value)


def test_mask_and_require_together() -> None:
    policy = configured(Flags, {"mask": ["SEND_TRIM"], "require": ["SEND_FUA"]})
    assert policy.describe(view()).flags == EVERYTHING & ~Flag.SEND_TRIM
