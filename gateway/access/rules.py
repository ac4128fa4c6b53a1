"""Which export a client gets for the name that it says, and with which policies.

The first rule that means the client and the export wins; with any rule, whom none means is denied. A rule sees
our own name of the export, the one that [[export]] has, and never the spelling that was asked for.

A denied client learns as much as the rule says: ERR_POLICY, or, where the denial is hidden, exactly what a name
that does not exist is answered with. Neither is listed, and no upstream is asked.

One `Access` stands for one configuration. After a reload there is another, which inherits what the policies
have counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from gateway.access.chain import Placed
from gateway.access.who import why_not
from gateway.config import Config, Route, Rule, Use
from gateway.policy import Client, Denied, Policy
from gateway.wire.handshake import ListedExport, shown


@dataclass(frozen=True)
class Grant:
    """A client may have an export."""

    name: str
    """Ours."""
    route: Route
    rule: str
    """Which rule says so; empty where there are none."""
    chain: tuple[Placed, ...]
    would: tuple[str, ...] = ()
    """Why it would have been denied, if nothing were only observed."""
    tried: tuple[tuple[str, str], ...] = ()
    """The rules before it, and why they do not mean this client and export."""


class NotGranted(Exception):
    """A client does not get an export; the text is for the log."""

    def __init__(
        self,
        why: str,
        *,
        hidden: bool = False,
        disconnect: bool = False,
        tried: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(why)
        self.hidden = hidden
        """For the client there is no such export."""
        self.disconnect = disconnect
        """Sessions that are open are ended."""
        self.tried = tuple(tried)


@dataclass
class _Trail:
    """How far the search for a rule has come."""

    tried: list[tuple[str, str]] = field(default_factory=list)
    would: list[str] = field(default_factory=list)


Place = tuple[str, ...]
"""Where in the configuration a policy stands, in words that outlive a reload."""


class Access:
    """The rules of one configuration. Raises `loading.PolicyError`, and pydantic's ValidationError for options
    that were not checked before.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._policies: dict[Place, Policy] = {}
        self._of_rules = [
            self._chain(("rule", _identity(rule)), rule.policies, rule.mode == "observe")
            for rule in config.rule
        ]
        self._of_exports = [
            self._chain(("export", export.name), export.policies) for export in config.exports
        ]

    @property
    def timed(self) -> bool:
        """Who may have what changes as time passes."""
        return any(policy.timed for policy in self._policies.values())

    def inherit(self, before: Access) -> None:
        """Take over what the policies of the configuration before have counted."""
        for place, policy in before._policies.items():
            heir = self._policies.get(place)
            if type(heir) is type(policy):
                heir.inherit(policy)
            else:
                policy.retire()

    # --- The questions

    def find(self, client: Client, asked: str) -> Grant:
        """Give what a client gets that asks for an export by a name. Raises `NotGranted`."""
        if not self.config.rule:
            return self._without_rules(client, asked)
        trail = _Trail()
        for number, rule in enumerate(self.config.rule):
            why = self._passed_over(client, number)
            name = asked if why else self._our_name(number, asked)
            route = None if name is None else self.config.route(name)
            if why is None and (name is None or route is None):
                why = f"it has no export {shown(asked)}"
            if why is None and not _means(rule, name or ""):
                why = f"it is not for export {shown(name or '')}"
            if why is not None:
                trail.tried.append((_label(rule, number), why))
            elif grant := self._decided(client, number, name or "", trail):
                return grant
        return self._nobody_says_so(client, asked, trail)

    def again(self, client: Client, name: str) -> Grant:
        """Give what a client would get that has opened an export of ours. Raises `NotGranted`."""
        if not self.config.rule:
            return self._without_rules(client, name)
        trail = _Trail()
        for number, rule in enumerate(self.config.rule):
            means = self._passed_over(client, number) is None and _means(rule, name)
            if means and (grant := self._decided(client, number, name, trail)):
                return grant
        return self._nobody_says_so(client, name, trail)

    def listed(self, client: Client, exports: Sequence[ListedExport]) -> list[ListedExport]:
        """Give what LIST shows a client, for all that there is under our names."""
        seen: list[ListedExport] = []
        for export in exports:
            try:
                grant = self.again(client, export.name)
            except NotGranted:
                continue
            shows: Sequence[ListedExport] = (export,)
            for placed in reversed(grant.chain):
                if not placed.observed:
                    shows = placed.policy.exports(shows)
            seen += [each for each in shows if self._leads_to(client, each.name, export.name)]
        return seen

    # --- Rules

    def _without_rules(self, client: Client, name: str) -> Grant:
        route = self.config.route(name)
        if route is None:
            raise NotGranted(f"there is no export {shown(name)}", hidden=True)
        trail = _Trail()
        chain = self._of_exports[route.number]
        self._admit(client, name, route, chain, trail)
        return Grant(name, route, "", chain, tuple(trail.would))

    def _passed_over(self, client: Client, number: int) -> str | None:
        """Say why a rule does not mean a client, whatever it asks for."""
        why = why_not(self.config.rule[number].who, client.identity)
        if why is not None:
            return why
        for placed in self._of_rules[number]:
            if not placed.policy.holds(client):
                return f"{placed.name} says that it does not hold at {client.at:%a %H:%M}"
        return None

    def _our_name(self, number: int, asked: str) -> str | None:
        name: str | None = asked
        for placed in self._of_rules[number]:
            if name is not None and not placed.observed:
                name = placed.policy.asked(name)
        return name

    def _decided(self, client: Client, number: int, name: str, trail: _Trail) -> Grant | None:
        """Do what the rule says that means a client and an export. None: it denies, and is only observed."""
        rule, label = self.config.rule[number], _label(self.config.rule[number], number)
        route = self.config.route(name)
        assert route is not None
        if rule.deny and rule.mode == "observe":
            trail.would.append(f"{label} denies it")
            trail.tried.append((label, "it denies, and is only observed"))
            return None
        chain = (*self._of_rules[number], *self._of_exports[route.number])
        if rule.deny:
            why = f"{label} denies it"
            self._tell(client, name, chain, why)
            hidden = rule.hide or route.hide
            raise NotGranted(why, hidden=hidden, disconnect=rule.disconnect, tried=trail.tried)
        self._admit(client, name, route, chain, trail)
        return Grant(name, route, label, chain, tuple(trail.would), tuple(trail.tried))

    def _admit(
        self, client: Client, name: str, route: Route, chain: tuple[Placed, ...], trail: _Trail
    ) -> None:
        for placed in chain:
            try:
                placed.policy.admit(client)
            except Denied as denied:
                why = f"{placed.name}: {denied}"
                if not placed.observed:
                    self._tell(client, name, chain, why)
                    raise NotGranted(why, hidden=route.hide, tried=trail.tried) from None
                trail.would.append(why)

    def _nobody_says_so(self, client: Client, name: str, trail: _Trail) -> Grant:
        route = self.config.route(name)
        if route is None:
            raise NotGranted(f"there is no export {shown(name)}", hidden=True, tried=trail.tried)
        why = "no rule lets it through"
        self._tell(client, name, self._of_exports[route.number], why)
        raise NotGranted(why, hidden=route.hide, tried=trail.tried)

    def _leads_to(self, client: Client, shown_name: str, name: str) -> bool:
        """Say whether a client that asks for what it was shown gets the export that was meant."""
        try:
            return self.find(client, shown_name).name == name
        except NotGranted:
            return False

    def _tell(self, client: Client, name: str, chain: Sequence[Placed], why: str) -> None:
        if client.hypothetical:
            return
        for placed in chain:
            placed.policy.denied(client, name, why)

    # --- Building

    def _chain(
        self, where: Place, uses: Sequence[Use], observed: bool = False
    ) -> tuple[Placed, ...]:
        return tuple(
            Placed(
                self._made((*where, use.name), use),
                use.name,
                observed or use.observed,
                use.options,
            )
            for use in uses
        )

    def _made(self, where: Place, use: Use) -> Policy:
        from gateway.access.loading import catalogue  # costs nothing where there are no policies

        policy = (
            catalogue()
            .find(use.name)
            .model_validate(dict(use.options), by_alias=True, by_name=False)
        )
        place = next(place for place in _places(where) if place not in self._policies)
        self._policies[place] = policy
        return policy


def _places(where: Place) -> Iterator[Place]:
    """Give names for the first, second, ... policy of one kind at one place."""
    number = 0
    while True:
        number += 1
        yield (*where, str(number))


def _identity(rule: Rule) -> str:
    """Say which rule it is, whatever stands before it."""
    return rule.name or repr((rule.who, rule.exports, rule.deny))


def _label(rule: Rule, number: int) -> str:
    return f"rule {shown(rule.name)}" if rule.name else f"rule {number + 1}"


def _means(rule: Rule, name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in rule.exports)
