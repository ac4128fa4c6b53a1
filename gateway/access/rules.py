"""Which export a client gets for the name that it says, and with which policies.

The first rule that means both the client and the export decides. If there are rules, and none means them, the
client is denied. A rule sees our own name of the export, the one that [[export]] has, and never the spelling
that was asked for. Where a policy renames exports, each rule reads the client's word in its own way, and the
client gets the export only by a name that the deciding rule has for it. Otherwise a client could ask for an
export by the name that a later, milder rule has for it.

A denied client learns only what the rule says: ERR_POLICY, or, where the denial is hidden, exactly the answer
for a name that does not exist. What is denied is not listed, and no upstream is asked about it.

One `Access` stands for one configuration. After a reload there is another, which inherits what the policies
have counted. Tickets come and go meanwhile; their chains (`gateway.tickets`) outlive reloads. A rule means a
ticket as it means an export, by its name, unless it says that it is for tickets alone, or for none. What a
ticket says for itself, it can only narrow.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from gateway.access.chain import Placed, objection
from gateway.access.who import why_not
from gateway.config import Config, Route, Rule, Use, Who
from gateway.policy import Client, Denied, Policy
from gateway.wire.handshake import ListedExport, shown


@dataclass(frozen=True)
class Grant:
    """Says that a client may have an export."""

    name: str
    """Our name of it."""
    route: Route
    rule: str
    """Which rule says so; empty if there are no rules."""
    chain: tuple[Placed, ...]
    rule_name: str | int | None = None
    """The rule's name, as it stands in the configuration, or its place among the rules."""
    would: tuple[str, ...] = ()
    """Why the client would have been denied, if observed rules and policies were enforced."""
    tried: tuple[tuple[str, str], ...] = ()
    """The rules before it, and why they do not mean this client and export."""

    @property
    def for_once(self) -> bool:
        """It is for one use."""
        return self.route.ticket is not None and self.route.ticket.once

    def is_as(self, other: Grant) -> bool:
        """Say whether another grants the same; what has been counted does not matter."""
        same = (self.name, self.route, self.rule) == (other.name, other.route, other.rule)
        return same and self._policies() == other._policies()

    def _policies(self) -> list[tuple[str, bool, object]]:
        return [(each.name, each.observed, each.policy.model_dump()) for each in self.chain]


class NotGranted(Exception):
    """A client does not get an export; the text is for the log."""

    def __init__(
        self,
        why: str,
        name: str | None = None,
        chain: tuple[Placed, ...] = (),
        *,
        hidden: bool = False,
        disconnect: bool = False,
        tried: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(why)
        self.name = name
        """Our name of it. None: there is no such export."""
        self.chain = chain
        """The policies that stand before the export."""
        self.hidden = hidden
        """The client must not learn that there is such an export."""
        self.disconnect = disconnect
        """The client's open sessions of the export are ended, too."""
        self.tried = tuple(tried)


@dataclass(frozen=True, slots=True)
class Listed:
    """What LIST shows to a client."""

    exports: list[ListedExport]
    denied: list[str]
    """Why the client is not shown other exports: each reason once."""


Place = tuple[str, ...]
"""Where in the configuration a policy stands, in words that outlive a reload."""


class Access:
    """The rules of one configuration. Raises `loading.PolicyError`, and pydantic's ValidationError for options
    that were not checked before.
    """

    def __init__(
        self, config: Config, of_tickets: Mapping[str, tuple[Placed, ...]] = MappingProxyType({})
    ) -> None:
        """`of_tickets` are the chains of the tickets that are in force, by name, at any time."""
        self.config = config
        self._policies: dict[Place, Policy] = {}
        self._of_rules = [
            self._chain(("rule", _identity(rule)), rule.policies, rule.mode == "observe")
            for rule in config.rule
        ]
        of_exports = (
            self._chain(("export", export.name), export.policies) for export in config.exports
        )
        self._of_exports: Mapping[int | str, tuple[Placed, ...]] = ChainMap(
            dict(enumerate(of_exports)),
            of_tickets,  # type: ignore[arg-type] # of a mapping that is only read
        )
        self._renames = any(
            type(placed.policy).asked is not Policy.asked
            for chain in self._of_rules
            for placed in chain
        )
        hides = any(rule.hide for rule in config.rule) or config.tickets.are_kept
        self._hides = self._renames or hides or any(export.hide for export in config.exports)

    @property
    def timed(self) -> bool:
        """Which client may have what changes as time passes."""
        return any(policy.timed for policy in self._policies.values())

    def inherit(self, before: Access) -> list[tuple[str, BaseException]]:
        """Take over what the policies of the configuration before have counted. After that there is no way
        back. Never raises: a policy that fails here begins anew, for none may keep a gateway from new rules.
        Give the policies that have failed, and how.
        """
        failed: list[tuple[str, BaseException]] = []
        heirs = {
            place: heir
            for place, heir in self._policies.items()
            if type(heir) is type(before._policies.get(place))
        }
        for place, policy in sorted(
            before._policies.items(), key=lambda each: each[0] not in heirs
        ):
            try:
                if place in heirs:
                    heirs[place].inherit(policy)
                else:
                    policy.retire()
            except (Exception, SystemExit) as error:
                header, whose, name, _number = place
                failed.append((f"{name} of {header} {whose}", error))
        return failed

    # --- The questions

    def find(self, client: Client, asked: str) -> Grant:
        """Give what a client gets that asks for an export by a name. Raises `NotGranted`, after the policies
        have been told of the denial.
        """
        try:
            return self._found(client, asked)
        except NotGranted as denied:
            for placed in () if client.hypothetical else denied.chain:
                placed.policy.denied(client, denied.name or "", str(denied))
            raise

    def again(self, client: Client, name: str) -> Grant:
        """Give what a client gets now that opened an export of ours earlier. Raises `NotGranted`."""
        route = self.config.route(name)
        number = self._decides(client, name)
        if route is None:
            # The client may have opened it under an earlier configuration.
            ends = number is not None and self.config.rule[number].disconnect
            raise NotGranted(f"there is no export {shown(name)}", hidden=True, disconnect=ends)
        if not self.config.rule:
            return self._granted(client, name, route)
        if number is None:
            raise self._denied("no rule lets it through", name, route)
        return self._decided(client, number, name, route)

    def listed(self, client: Client, exports: Sequence[ListedExport]) -> Listed:
        """Give what LIST shows to a client. `exports` are all that there are, by our names."""
        seen: list[ListedExport] = []
        denied: list[str] = []
        for export in exports:
            try:
                grant = self.again(client, export.name)
            except NotGranted as why:
                denied.append(str(why))
                continue
            shows: Sequence[ListedExport] = (export,)
            for placed in reversed(grant.chain):
                if not placed.observed:
                    shows = placed.policy.exports(shows)
            seen += [each for each in shows if self._leads_to(client, each.name, export.name)]
        return Listed(seen, denied)

    def must_be_there(self, grant: Grant) -> bool:
        """Say whether the upstream has to know an export before we tell a client anything of it. That is so if
        names are hidden, and the export was granted by a pattern. Otherwise a client could tell a hidden export
        from one that does not exist: of the hidden one we say nothing, but a server may say something even of
        one that does not exist.
        """
        place = grant.route.place
        return (
            self._hides and isinstance(place, int) and self.config.exports[place].exact_name is None
        )

    def why_nobody(self, name: str) -> str | None:
        """Say why no client at all gets an export of ours; None if some client may, as far as the rules alone
        can tell.
        """
        if not self.config.rule:
            return None
        for number, rule in enumerate(self.config.rule):
            if not self.config.means(rule, name) or _only_observed(rule):
                continue
            if not rule.deny and self._is_called(number, name):
                return None
            if rule.who == Who() and not any(each.policy.timed for each in self._of_rules[number]):
                verb = "denies it to" if rule.deny else "has it under no name for"
                return f"{self._label(number)} {verb} everybody"
        return "no rule lets anybody through"

    def _is_called(self, number: int, name: str) -> bool:
        """Say whether a client can ask for an export of ours by any name, if a rule decides."""
        shows: Sequence[ListedExport] = (ListedExport(name),)
        for placed in reversed(self._of_rules[number]):
            if not placed.observed:
                shows = placed.policy.exports(shows)
        asked = [name, *(each.name for each in shows)]
        return any(self._our_name(number, each) == name for each in asked)

    # --- Rules

    def _found(self, client: Client, asked: str) -> Grant:
        if not self.config.rule:
            return self.again(client, asked)
        tried: list[tuple[str, str]] = []
        for number, rule in enumerate(self.config.rule):
            why = self._passed_over(client, number)
            if why is None:
                name = self._our_name(number, asked)
                route = None if name is None else self.config.route(name)
                if name is None or route is None:
                    why = f"it has no export {shown(asked)}"
                elif not self.config.means(rule, name):
                    why = f"it is not for export {shown(name)}"
                elif _only_observed(rule):
                    why = "it denies, and is only observed"
                else:
                    # Where no rule renames, those before it were asked for this very name.
                    first = self._decides(client, name) if self._renames else number
                    if first is None or first == number:
                        return self._decided(client, number, name, route, tried)
                    why = f"{self._label(first)} comes before it for export {shown(name)}"
            tried.append((self._label(number), why))
        raise self._nobody(client, asked, tried)

    def _decides(self, client: Client, name: str) -> int | None:
        """Give the first rule that means a client and an export of ours."""
        for number, rule in enumerate(self.config.rule):
            means = self.config.means(rule, name) and not _only_observed(rule)
            if means and self._passed_over(client, number) is None:
                return number
        return None

    def _passed_over(self, client: Client, number: int) -> str | None:
        """Say why a rule does not mean a client, whatever the client asks for."""
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

    def _decided(
        self,
        client: Client,
        number: int,
        name: str,
        route: Route,
        tried: Sequence[tuple[str, str]] = (),
    ) -> Grant:
        """Grant or deny an export to a client, as the rule says that means both."""
        rule = self.config.rule[number]
        chain = (*self._of_rules[number], *self._of_exports[route.place])
        if rule.deny:
            hidden = rule.hide or route.hide
            raise NotGranted(
                f"{self._label(number)} denies it",
                *(name, chain),
                hidden=hidden,
                disconnect=rule.disconnect,
                tried=tried,
            )
        would = [
            f"{self._label(before)} denies it"
            for before, each in enumerate(self.config.rule[:number])
            if _only_observed(each)
            and self.config.means(each, name)
            and self._passed_over(client, before) is None
        ]
        return self._granted(client, name, route, chain, number, would, tried)

    def _granted(
        self,
        client: Client,
        name: str,
        route: Route,
        chain: tuple[Placed, ...] | None = None,
        number: int | None = None,
        would: Sequence[str] = (),
        tried: Sequence[tuple[str, str]] = (),
    ) -> Grant:
        """Grant the export, if no policy denies it."""
        chain = self._of_exports[route.place] if chain is None else chain
        would = list(would)
        for placed in chain:
            try:
                placed.policy.admit(client)
            except Exception as error:
                why = objection(placed, error)
                if placed.observed:
                    would.append(why)
                elif isinstance(error, Denied):
                    raise NotGranted(why, name, chain, hidden=route.hide, tried=tried) from None
                else:
                    raise
        label, called = "", None
        if number is not None:
            label, called = self._label(number), self.config.rule[number].name or number + 1
        return Grant(name, route, label, chain, called, tuple(would), tuple(tried))

    def _nobody(self, client: Client, asked: str, tried: Sequence[tuple[str, str]]) -> NotGranted:
        """Say why no rule gives a client an export for a name."""
        route = self.config.route(asked)
        if route is None:
            return NotGranted(f"there is no export {shown(asked)}", hidden=True, tried=tried)
        if (number := self._decides(client, asked)) is not None:
            # A rule means this client and export, but its policies know the export by another name, or by none.
            why = f"{self._label(number)} has no export {shown(asked)}"
            chain = (*self._of_rules[number], *self._of_exports[route.place])
            return NotGranted(why, asked, chain, hidden=True, tried=tried)
        return self._denied("no rule lets it through", asked, route, tried)

    def _denied(
        self, why: str, name: str, route: Route, tried: Sequence[tuple[str, str]] = ()
    ) -> NotGranted:
        chain = self._of_exports[route.place]
        return NotGranted(why, name, chain, hidden=route.hide, tried=tried)

    def _label(self, number: int) -> str:
        name = self.config.rule[number].name
        return f"rule {shown(name)}" if name else f"rule {number + 1}"

    def _leads_to(self, client: Client, shown_name: str, name: str) -> bool:
        """Say whether a client that asks by the name that it was shown gets the export that this name stands
        for.
        """
        if shown_name == name and not self.config.rule:
            return True
        try:
            return self._found(client, shown_name).name == name
        except NotGranted:
            return False

    # --- Building

    def _chain(
        self, where: Place, uses: Sequence[Use], observed: bool = False
    ) -> tuple[Placed, ...]:
        return tuple(
            self._placed((*where, use.name), use, observed or use.observed) for use in uses
        )

    def _placed(self, where: Place, use: Use, observed: bool) -> Placed:
        from gateway.access.loading import made  # costs nothing where there are no policies

        policy = made(use)
        place = next(place for place in _places(where) if place not in self._policies)
        self._policies[place] = policy
        return Placed(policy, use.name, observed, use.options, place)


def _places(where: Place) -> Iterator[Place]:
    """Give names for the first, second, ... policy of one kind at one place."""
    number = 0
    while True:
        number += 1
        yield (*where, str(number))


def _identity(rule: Rule) -> str:
    """Say which rule it is, whatever stands before it."""
    return rule.name or repr((rule.who, rule.exports, rule.tickets, rule.deny))


def _only_observed(rule: Rule) -> bool:
    """Say whether a rule would deny, but is only observed: then it logs, and lets the client pass."""
    return rule.deny and rule.mode == "observe"
