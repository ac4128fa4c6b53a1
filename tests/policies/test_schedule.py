import tomllib
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.identity import Identity
from gateway.policy import Client, Denied
from policies.schedule import WEEK, Schedule
from tests.policies.harness import configured, view

VIENNA = ZoneInfo("Europe/Vienna")
WORKDAYS = ["mon", "tue", "wed", "thu", "fri"]


def schedule(**options: object) -> Schedule:
    policy = configured(
        Schedule, {name.rstrip("_").replace("_", "-"): value for name, value in options.items()}
    )
    assert isinstance(policy, Schedule)
    return policy


def at(text: str) -> Client:
    """A client that comes then: in Vienna's time if no offset is said. 2026-11-16 is a Monday."""
    moment = datetime.fromisoformat(text)
    return Client(Identity(), moment if moment.tzinfo else moment.replace(tzinfo=VIENNA))


@pytest.mark.parametrize(
    ("options", "when", "holds"),
    [
        ({"days": WORKDAYS}, "2026-11-16T00:00", True),
        ({"days": WORKDAYS}, "2026-11-20T23:59:59.999999", True),
        ({"days": WORKDAYS}, "2026-11-21T00:00", False),
        ({"days": ["sun"]}, "2026-11-22T12:00", True),
        ({"hours": ["08:00-18:00"]}, "2026-11-16T07:59:59.999999", False),
        ({"hours": ["08:00-18:00"]}, "2026-11-16T08:00", True),
        ({"hours": ["08:00-18:00"]}, "2026-11-16T17:59:59.999999", True),
        ({"hours": ["08:00-18:00"]}, "2026-11-16T18:00", False),
        ({"hours": ["18:00-24:00"]}, "2026-11-16T23:59:59", True),
        ({"hours": ["18:00-24:00"]}, "2026-11-16T00:00", False),
        ({"hours": ["18:00-00:00"]}, "2026-11-16T23:59:59", True),
        ({"hours": ["18:00-00:00"]}, "2026-11-16T00:00", False),
        ({"hours": ["08:00-12:00", "13:30-18:00"]}, "2026-11-16T12:30", False),
        ({"hours": ["08:00-12:00", "13:30-18:00"]}, "2026-11-16T13:30", True),
        ({"hours": ["22:00-06:00"], "days": ["fri"]}, "2026-11-20T05:00", False),
        ({"hours": ["22:00-06:00"], "days": ["fri"]}, "2026-11-20T22:00", True),
        ({"hours": ["22:00-06:00"], "days": ["fri"]}, "2026-11-21T05:59", True),
        ({"hours": ["22:00-06:00"], "days": ["fri"]}, "2026-11-21T06:00", False),
        ({"hours": ["22:00-06:00"], "days": ["fri"]}, "2026-11-21T22:00", False),
        ({"hours": ["22:00-06:00"], "days": ["sun"]}, "2026-11-16T01:00", True),
        # The time zone: 23:30 in Vienna on Friday is Saturday in Tokyo.
        ({"days": ["sat"], "time_zone": "Asia/Tokyo"}, "2026-11-20T23:30", True),
        ({"days": ["sat"], "time_zone": "Europe/Vienna"}, "2026-11-20T22:59+00:00", False),
        ({"days": ["sat"], "time_zone": "Europe/Vienna"}, "2026-11-20T23:00+00:00", True),
        # Without one, it is the client's, which is the machine's.
        ({"hours": ["08:00-09:00"]}, "2026-11-20T08:30+09:00", True),
        # In the night of 2026-03-29, clocks go from 02:00 to 03:00; on 2026-10-25, back from 03:00 to 02:00.
        ({"hours": ["02:00-03:00"], "time_zone": "Europe/Vienna"}, "2026-03-29T00:59+00:00", False),
        ({"hours": ["02:00-03:00"], "time_zone": "Europe/Vienna"}, "2026-03-29T01:00+00:00", False),
        ({"hours": ["02:00-03:00"], "time_zone": "Europe/Vienna"}, "2026-10-25T00:30+00:00", True),
        ({"hours": ["02:00-03:00"], "time_zone": "Europe/Vienna"}, "2026-10-25T01:30+00:00", True),
        ({"hours": ["02:00-03:00"], "time_zone": "Europe/Vienna"}, "2026-10-25T02:00+00:00", False),
        # From and until
        ({"from_": "2026-11-16"}, "2026-11-15T23:59:59", False),
        ({"from_": "2026-11-16"}, "2026-11-16T00:00", True),
        ({"until": "2026-11-16"}, "2026-11-16T23:59:59", True),
        ({"until": "2026-11-16"}, "2026-11-17T00:00", False),
        ({"from_": "2026-11-16T08:30"}, "2026-11-16T08:29:59", False),
        ({"from_": "2026-11-16T08:30"}, "2026-11-16T08:30", True),
        ({"until": "2026-11-16T08:30"}, "2026-11-16T08:29:59", True),
        ({"until": "2026-11-16T08:30"}, "2026-11-16T08:30", False),
        ({"until": "2026-11-16T08:30Z"}, "2026-11-16T09:29:59", True),
        ({"until": "2026-11-16T08:30Z"}, "2026-11-16T09:30", False),
        ({"from_": "2026-11-16", "time_zone": "Asia/Tokyo"}, "2026-11-15T16:00", True),
        ({"from_": "2026-11-16", "time_zone": "Asia/Tokyo"}, "2026-11-15T15:59", False),
        ({"until": "9998-12-31"}, "2026-11-15T15:59", True),
        (
            {"from_": "2026-11-16", "until": "2026-11-20", "hours": ["08:00-18:00"]},
            "2026-11-18T19:00",
            False,
        ),
    ],
)
def test_when_it_holds(options: dict[str, object], when: str, holds: bool) -> None:
    assert schedule(**options).holds(at(when)) is holds


@pytest.mark.parametrize("toml", ["2026-11-16", "2026-11-16T08:30:00", "2026-11-16T08:30:00Z"])
def test_dates_of_toml_are_as_text(toml: str) -> None:
    options = tomllib.loads(f"from = {toml}\nuntil = 2027-01-01")
    assert configured(Schedule, options) == schedule(from_=toml, until="2027-01-01")


@given(
    st.sets(st.sampled_from(WEEK), min_size=1),
    st.integers(0, 23),
    st.integers(0, 23),
    st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1)),
)
def test_a_range_is_as_long_as_it_says_and_belongs_to_its_day(
    days: set[str], start: int, end: int, when: datetime
) -> None:
    """Walk back from the moment to the last start; the range of that day is all that there can be."""
    if start == end:
        return
    policy = schedule(days=sorted(days), hours=[f"{start:02}:00-{end:02}:00"], time_zone="UTC")
    began = when.replace(hour=start, minute=0, second=0, microsecond=0)
    if began > when:
        began -= timedelta(days=1)
    inside = when - began < timedelta(hours=(end - start) % 24)
    expected = inside and WEEK[began.weekday()] in days
    assert policy.holds(Client(Identity(), when.replace(tzinfo=UTC))) is expected


def test_an_export_is_refused_at_other_times() -> None:
    policy = schedule(days=WORKDAYS, hours=["08:00-18:00"], time_zone="Europe/Vienna")
    policy.admit(at("2026-11-16T08:00"))
    with pytest.raises(Denied) as denied:
        policy.admit(at("2026-11-21T12:30+00:00"))
    assert str(denied.value) == "not at this time: sat 2026-11-21 13:30 CET"


def test_it_is_looked_at_again_as_time_passes_and_costs_no_command_anything() -> None:
    assert Schedule.timed
    assert not schedule(days=["mon"]).hooked(view())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected one of days, hours, from, until at least, got none"),
        ({"time-zone": "UTC"}, "expected one of days, hours, from, until at least, got none"),
        ({"days": []}, "at least 1 item"),
        ({"days": ["monday"]}, "'mon', 'tue'"),
        ({"hours": []}, "at least 1 item"),
        ({"hours": "08:00-18:00"}, "valid list"),
        ({"hours": ["8-18"]}, 'expected hours such as "08:00-18:00", got 8-18'),
        ({"hours": [8]}, 'expected hours such as "08:00-18:00", got 8'),
        ({"hours": ["08:60-18:00"]}, "expected hours from 00:00 to 24:00, got 08:60-18:00"),
        ({"hours": ["08:00-24:01"]}, "expected hours from 00:00 to 24:00, got 08:00-24:01"),
        ({"hours": ["24:00-06:00"]}, "expected hours from 00:00 to 24:00, got 24:00-06:00"),
        ({"hours": ["08:00-08:00"]}, 'expected another end than start (all day is "00:00-24:00")'),
        (
            {"days": ["mon"], "time-zone": "Europe/Wien"},
            'expected a time zone such as "Europe/Vienna", got Europe/Wien',
        ),
        ({"days": ["mon"], "time-zone": "Europe"}, "expected a time zone such as"),
        ({"days": ["mon"], "time-zone": "../x"}, "expected a time zone such as"),
        ({"days": ["mon"], "time-zone": 1}, "expected a time zone such as"),
        ({"from": "soon"}, 'expected a date or date-time such as "2026-12-24T18:00", got soon'),
        ({"until": 2026}, "expected a date or date-time such as"),
        ({"until": "9999-12-31"}, "expected a year from 1970 to 9998, got 9999-12-31"),
        ({"from": "0001-01-01"}, "expected a year from 1970 to 9998, got 0001-01-01"),
        (
            {"from": "2026-11-17", "until": "2026-11-16"},
            "expected until to be after from (2026-11-17), got 2026-11-16",
        ),
        (
            {
                "from": "2026-11-17T08:00",
                "until": "2026-11-17T07:00Z",
                "time-zone": "Europe/Vienna",
            },
            "expected until to be after from (2026-11-17 08:00:00), got 2026-11-17 07:00:00+00:00",
        ),
    ],
)
def test_mistakes(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as mistake:
        configured(Schedule, options)
    assert message in str(mistake.value)


def test_the_same_day_is_a_time_too() -> None:
    assert schedule(from_="2026-11-16", until="2026-11-16").holds(at("2026-11-16T12:00"))
