"""Let a rule hold, or an export be opened, only at certain times.

In a `[[rule]]`, the rule holds for its clients at these times; at others, the next rule is tried. In an
`[[export]]`, a client that comes at another time is refused.

- `days`: days of the week, `"mon"` to `"sun"`; default: all.
- `hours`: ranges of hours, `"08:00-18:00"`; default: all day. The end does not belong to a range, and
  `"24:00"` is the end of the day. A range across midnight, `"22:00-06:00"`, belongs to the day on which it
  begins: with `days = ["fri"]` it ends on Saturday at 6.
- `time-zone`: whose time it is, as in `"Europe/Vienna"`; default: the machine's local time.
- `from`, `until`: not before, and not after. If it is a date, all of that day belongs to the time. If it is a
  date-time, `until` is the first moment that is too late. Both are TOML's own dates, or text. With an offset
  (`2026-12-24T18:00:00Z`) they mean that moment, without one the time in `time-zone`.

At least one of `days`, `hours`, `from` and `until` has to be given. The clock on the wall decides: in the
night in which clocks go forward, 02:00 to 03:00 does not come; when they go back, it comes twice.

When the time is over, the rule that holds then decides what becomes of running sessions (`disconnect`). Where
there are rules at all, a client for whom none holds is refused. So if a client is to have less at other
times, and not nothing, write a rule for those as well.

nbdkit has no such filter.

    policies = [ { use = "schedule", days = ["mon", "tue", "wed", "thu", "fri"], hours = ["22:00-06:00"] } ]
"""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import date, datetime, timedelta
from typing import Annotated, ClassVar, Literal, NamedTuple, Self
from zoneinfo import ZoneInfo

from pydantic import PlainValidator, WithJsonSchema, model_validator

from gateway.policy import Client, Denied, Field, Policy

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]

WEEK: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


FIRST_YEAR, LAST_YEAR = 1970, 9998
"""There is always a day before and after, in every time zone."""


class _Range(NamedTuple):
    """In minutes of the day. It goes over midnight if it ends before it begins."""

    start: int
    end: int

    def __str__(self) -> str:
        return "-".join(f"{minute // 60:02}:{minute % 60:02}" for minute in self)


_WHOLE_DAY = _Range(0, 24 * 60)


def _range(value: object) -> _Range:
    if isinstance(value, _Range):
        return value
    found = re.fullmatch(r"(\d\d):(\d\d)-(\d\d):(\d\d)", value if isinstance(value, str) else "")
    if found is None:
        raise ValueError(f'expected hours such as "08:00-18:00", got {value}')
    numbers = [int(digits) for digits in found.groups()]
    start, end = numbers[0] * 60 + numbers[1], numbers[2] * 60 + numbers[3]
    if numbers[1] > 59 or numbers[3] > 59 or start >= 24 * 60 or end > 24 * 60:
        raise ValueError(f"expected hours from 00:00 to 24:00, got {value}")
    if start == end:
        raise ValueError(f'expected another end than start (all day is "00:00-24:00"), got {value}')
    return _Range(start, end)


def _zone(value: object) -> ZoneInfo:
    if isinstance(value, ZoneInfo):
        return value
    try:
        return ZoneInfo(value if isinstance(value, str) else "")
    except (KeyError, ValueError, OSError):  # unknown; not a name; a directory of the database
        raise ValueError(f'expected a time zone such as "Europe/Vienna", got {value}') from None


def _moment(value: object) -> date:
    moment = value if isinstance(value, date) else _parsed(value)  # a datetime is a date too
    if not FIRST_YEAR <= moment.year <= LAST_YEAR:
        raise ValueError(f"expected a year from {FIRST_YEAR} to {LAST_YEAR}, got {value}")
    return moment


def _parsed(value: object) -> date:
    for form in (date, datetime):
        with suppress(TypeError, ValueError):
            return form.fromisoformat(value)  # type: ignore[arg-type] # TypeError says so
    raise ValueError(f'expected a date or date-time such as "2026-12-24T18:00", got {value}')


Hours = Annotated[
    _Range, PlainValidator(_range), WithJsonSchema({"type": "string", "title": '"08:00-18:00"'})
]
Zone = Annotated[
    ZoneInfo, PlainValidator(_zone), WithJsonSchema({"type": "string", "title": "time zone"})
]
Moment = Annotated[
    date,
    PlainValidator(_moment),
    WithJsonSchema({"type": "string", "title": "date or date-time"}),
]


class Schedule(Policy):
    """`use = "schedule"`."""

    timed: ClassVar[bool] = True

    days: list[Day] = Field(list(WEEK), min_length=1, description="Days of the week.")
    hours: list[Hours] | None = Field(
        None, min_length=1, description="Ranges of hours of these days; default: all day."
    )
    time_zone: Zone | None = Field(
        None, description="Whose time it is; default: the machine's local time."
    )
    from_: Moment | None = Field(None, alias="from", description="Date or date-time: not before.")
    until: Moment | None = Field(None, description="Date or date-time: not after.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.model_fields_set - {"time_zone"}:
            raise ValueError("expected one of days, hours, from, until at least, got none")
        if self.from_ is not None and self.until is not None:
            start, end = self._aware(_first(self.from_)), self._aware(_last(self.until))
            if start >= end:
                raise ValueError(
                    f"expected until to be after from ({self.from_}), got {self.until}"
                )
        return self

    def holds(self, client: Client) -> bool:
        """Say whether it is time."""
        at = self._there(client.at)
        if self.from_ is not None and _before(at, _first(self.from_)):
            return False
        if self.until is not None and not _before(at, _last(self.until)):
            return False
        return any(self._inside(at, hours) for hours in self.hours or [_WHOLE_DAY])

    def admit(self, client: Client) -> None:
        """Refuse who comes at another time."""
        if not self.holds(client):
            at = self._there(client.at)
            raise Denied(f"not at this time: {WEEK[at.weekday()]} {at:%Y-%m-%d %H:%M %Z}")

    def _there(self, at: datetime) -> datetime:
        return at if self.time_zone is None else at.astimezone(self.time_zone)

    def _aware(self, moment: datetime) -> datetime:
        if moment.tzinfo is not None:
            return moment
        zone = self.time_zone
        return moment.astimezone() if zone is None else moment.replace(tzinfo=zone)

    def _inside(self, at: datetime, hours: _Range) -> bool:
        """By the clock on the wall. What goes over midnight is held against today, and against yesterday."""
        minute, today = at.hour * 60 + at.minute, at.weekday()
        if hours.start < hours.end:
            return hours.start <= minute < hours.end and WEEK[today] in self.days
        if minute >= hours.start:
            return WEEK[today] in self.days
        return minute < hours.end and WEEK[today - 1] in self.days


def _first(bound: date) -> datetime:
    return bound if isinstance(bound, datetime) else datetime(bound.year, bound.month, bound.day)


def _last(bound: date) -> datetime:
    """Give the first moment that is too late."""
    return bound if isinstance(bound, datetime) else _first(bound) + timedelta(days=1)


def _before(at: datetime, bound: datetime) -> bool:
    return (at if bound.tzinfo is not None else at.replace(tzinfo=None)) < bound
