"""Which export a client gets, by which rule, and what it and the policies learn of it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access.loading import catalogue
from gateway.access.rules import Access, Grant, NotGranted
from gateway.access.who import why_not
from gateway.cli.vocabulary import vocabulary
from gateway.config import ConfigError, Who, parse
from gateway.identity import Identity
from gateway.policy import Client, Policy
from gateway.wire.handshake import ListedExport
from policies.readonly import Readonly
from tests.access.installed import Installed

BASE = """
[[listen]]
uri = "nbd://127.0.0.1:1"
[upstream.disks]
uri = "nbd://127.0.0.1:2"
"""

RECORDER = '''
"""Says what it hears."""

from gateway.policy import Client, Denied, Field, Policy

HEARD: list[tuple[str, ...]] = []


class Recorder(Policy):
    """`use = "recorder"`."""

    name: str = Field(default="", description="What it is called.")
    refuses: bool = Field(default=False, description="Nobody is admitted.")
    breaks: bool = Field(default=False, description="It has a bug.")

    def admit(self, client: Client) -> None:
        if self.breaks:
            raise ZeroDivisionError("a bug")
        if self.refuses:
            raise Denied(f"{self.name} refuses")

    def denied(self, client: Client, export: str, why: str) -> None:
        HEARD.append(("denied", self.name, export, why))

    def inherit(self, before: "Recorder") -> None:
        HEARD.append(("inherit", self.name, before.name))

    def retire(self) -> None:
        HEARD.append(("retire", self.name))
'''


def config(rules: str = "", exports: tuple[str, ...] = ("vm-1", "vm-2", ""), more: str = "") -> str:
    listed = "".join(
        f'[[export]]\nname = "{name}"\nupstream = "disks"\n{more}\n' for name in exports
    )
    return BASE + listed + rules


def access(
    rules: str = "", exports: tuple[str, ...] = ("vm-1", "vm-2", ""), more: str = ""
) -> Access:
    """The rules of a configuration with some exports; `more` is in each of them."""
    return Access(parse(config(rules, exports, more), "f", vocabulary()))


NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def client(address: str = "10.0.0.1", at: datetime = NOON) -> Client:
    return Client(Identity.at(address, 1), at)


def found(rules: Access, name: str, who: Client | None = None) -> tuple[str, str, list[str]] | str:
    """(our name, the rule, its policies), or why there is nothing: with (hidden) where it is."""
    try:
        grant = rules.find(who or client(), name)
    except NotGranted as denied:
        return str(denied) + (" (hidden)" if denied.hidden else "")
    return grant.name, grant.rule, [placed.name for placed in grant.chain]


def listed(rules: Access, who: Client | None = None) -> list[str]:
    """Names that LIST shows."""
    exports = [ListedExport(each.name) for each in rules.config.exports]
    return [each.name for each in rules.listed(who or client(), exports).exports]


# --- Which rule


def test_without_rules() -> None:
    rules = access(more='policies = [ { use = "readonly" } ]')
    assert found(rules, "vm-1") == ("vm-1", "", ["readonly"])
    assert found(rules, "vm-3") == "there is no export 'vm-3' (hidden)"
    assert listed(rules) == ["vm-1", "vm-2", ""]


FIRST = """
[[rule]]
who.network = "10.0.0.1"
exports = "vm-1"
policies = [ { use = "readonly" } ]
[[rule]]
name = "both"
who.network = "10.0.0.0/24"
exports = "vm-*"
"""


@pytest.mark.parametrize(
    ("address", "name", "expected"),
    [
        ("10.0.0.1", "vm-1", ("vm-1", "rule 1", ["readonly"])),
        ("10.0.0.1", "vm-2", ("vm-2", "rule 'both'", [])),
        ("10.0.0.2", "vm-1", ("vm-1", "rule 'both'", [])),
        ("10.0.1.1", "vm-1", "no rule lets it through"),
        # the default export is a name like any other
        ("10.0.0.1", "", "no rule lets it through"),
        # no pass-through, and no other spelling
        ("10.0.0.1", "vm-3", "there is no export 'vm-3' (hidden)"),
        ("10.0.0.1", "VM-1", "there is no export 'VM-1' (hidden)"),
        ("10.0.0.1", "vm-1 ", "there is no export 'vm-1 ' (hidden)"),
        ("10.0.0.1", "/vm-1", "there is no export '/vm-1' (hidden)"),
        ("10.0.0.1", "vm-*", "there is no export 'vm-*' (hidden)"),
    ],
)
def test_the_first_that_matches(address: str, name: str, expected: object) -> None:
    assert found(access(FIRST), name, client(address)) == expected


def test_why_those_before_did_not_match() -> None:
    grant = access(FIRST).find(client("10.0.0.2"), "vm-2")
    assert grant.tried == (("rule 1", "it comes from 10.0.0.2"),)
    grant = access(FIRST).find(client(), "vm-2")
    assert grant.tried == (("rule 1", "it is not for export 'vm-2'"),)
    with pytest.raises(NotGranted) as denied:
        access(FIRST).find(client(), "x")
    assert denied.value.tried == (
        ("rule 1", "it has no export 'x'"),
        ("rule 'both'", "it has no export 'x'"),
    )


def test_the_default_export_by_its_name() -> None:
    rules = access('[[rule]]\nexports = [""]\n')
    assert found(rules, "") == ("", "rule 1", [])
    assert found(rules, "vm-1") == "no rule lets it through"
    assert found(access("[[rule]]\n"), "") == ("", "rule 1", [])


def test_an_exact_name_that_looks_like_a_pattern() -> None:
    rules = access('[[rule]]\nexports = "v[*]"\n', exports=("v[*]", "vm"))
    assert found(rules, "v*") == ("v*", "rule 1", [])
    assert found(rules, "vm") == "no rule lets it through"


def test_the_policies_of_the_rule_stand_before_those_of_the_export() -> None:
    rules = access(
        '[[rule]]\npolicies = [ { use = "zero" }, { use = "readonly" } ]\n',
        more='policies = [ { use = "contexts" }, { use = "zero" } ]',
    )
    assert found(rules, "vm-1") == ("vm-1", "rule 1", ["zero", "readonly", "contexts", "zero"])
    [one, two] = (rules.find(client(), name).chain for name in ("vm-1", "vm-2"))
    assert one[0].policy is two[0].policy  # one place of the configuration, one policy
    assert one[2].policy is not two[2].policy


def test_each_rule_is_held_against_a_client_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An opening costs as much as there are rules before the one that matches, and not twice as much."""
    count = 0

    def counted(who: Who, identity: Identity) -> str | None:
        nonlocal count
        count += 1
        return why_not(who, identity)

    others = "".join(f'[[rule]]\nwho.network = "10.1.{n}.0/24"\n' for n in range(100))
    rules = access(others + '[[rule]]\nwho.network = "10.0.0.0/24"\n')
    monkeypatch.setattr("gateway.access.rules.why_not", counted)
    assert found(rules, "vm-1") == ("vm-1", "rule 101", [])
    assert count == 101


# --- What is denied, and who learns of it


@pytest.mark.parametrize(
    ("rule", "export", "expected"),
    [
        ("deny = true", "", "rule 1 denies it"),
        ("deny = true\nhide = true", "", "rule 1 denies it (hidden)"),
        ("deny = true", "hide = true", "rule 1 denies it (hidden)"),
        ('exports = "vm-2"', "", "no rule lets it through"),
        ('exports = "vm-2"', "hide = true", "no rule lets it through (hidden)"),
        ('policies = [ { use = "schedule", days = ["mon"] } ]', "", "no rule lets it through"),
    ],
)
def test_denied(rule: str, export: str, expected: str) -> None:
    rules = access(f"[[rule]]\n{rule}\n", more=export)
    assert found(rules, "vm-1") == expected
    assert "vm-1" not in listed(rules)


def test_a_policy_of_the_export_denies() -> None:
    for hide, expected in (("", ""), ("\nhide = true", " (hidden)")):
        rules = access(
            "[[rule]]\n", more=f'policies = [ {{ use = "schedule", days = ["mon"] }} ]{hide}'
        )
        said = found(rules, "vm-1")
        assert isinstance(said, str)
        assert said.startswith("schedule: not at this time: sat")
        assert said.endswith(expected or "UTC")
        assert listed(rules) == []


def test_disconnect() -> None:
    denying = (
        '[[rule]]\ndeny = true\nexports = "vm-1"\ndisconnect = {}\n[[rule]]\nexports = "vm-2"\n'
    )
    for written, expected in (("true", True), ("false", False)):
        with pytest.raises(NotGranted) as denied:
            access(denying.format(written)).again(client(), "vm-1")
        assert denied.value.disconnect is expected
    with pytest.raises(NotGranted) as denied:
        access(denying.format("true")).again(client(), "")
    assert not denied.value.disconnect


def test_again_for_an_export_that_is_gone() -> None:
    for rules in ("", "[[rule]]\n"):
        with pytest.raises(NotGranted, match="there is no export 'old'") as denied:
            access(rules).again(client(), "old")
        assert denied.value.hidden
        assert not denied.value.disconnect


def test_a_rule_holds_at_its_time() -> None:
    rules = access(
        '[[rule]]\nname = "day"\npolicies = [ { use = "schedule", hours = ["08:00-18:00"] } ]\n'
        '[[rule]]\nname = "night"\npolicies = [ { use = "readonly" } ]\n'
    )
    assert rules.timed
    assert not access("[[rule]]\n").timed
    late = client(at=NOON.replace(hour=18))
    assert found(rules, "vm-1") == ("vm-1", "rule 'day'", ["schedule"])
    assert found(rules, "vm-1", late) == ("vm-1", "rule 'night'", ["readonly"])
    [(label, why)] = rules.find(late, "vm-1").tried
    assert (label, why) == ("rule 'day'", "schedule says that it does not hold at Sat 18:00")
    assert rules.again(late, "vm-1").rule == "rule 'night'"


def test_rules_go_by_the_names_that_a_pattern_lets_through() -> None:
    several = parse(
        BASE + "canonical-names = true\n[[export]]\nname = '?*'\nupstream = 'disks'\n"
        "[[rule]]\nexports = 'secret*'\ndeny = true\n"
        "[[rule]]\nexports = 'vm-*'\npolicies = [ { use = 'readonly' } ]\n[[rule]]\n",
        "f",
        vocabulary(),
    )
    rules = Access(several)
    assert found(rules, "secret-1") == "rule 1 denies it"
    assert found(rules, "vm-1") == ("vm-1", "rule 2", ["readonly"])
    assert found(rules, "any") == ("any", "rule 3", [])
    assert found(rules, "") == "there is no export '' (hidden)"
    there = [ListedExport(name) for name in ("secret-1", "vm-1", "any")]
    assert [each.name for each in rules.listed(client(), there).exports] == ["vm-1", "any"]
    assert [rules.why_nobody(name) for name in ("secret-1", "any")] == [
        "rule 1 denies it to everybody",
        None,
    ]


# --- Names that a rule's policies change

RENAMING = """
[[rule]]
name = "few"
who.network = "10.0.0.1"
exports = "vm-1"
policies = [ { use = "readonly" }, { use = "exports", rename = { vm-1 = "disk" } } ]
[[rule]]
name = "all"
policies = [ { use = "exports", rename = { vm-1 = "mine", vm-2 = "vm-1" } } ]
"""


@pytest.mark.parametrize(
    ("address", "name", "expected"),
    [
        ("10.0.0.1", "disk", ("vm-1", "rule 'few'", ["readonly", "exports"])),
        # the first rule for vm-1 decides, by whatever name it is asked for
        ("10.0.0.1", "mine", "there is no export 'mine' (hidden)"),
        ("10.0.0.2", "mine", ("vm-1", "rule 'all'", ["exports"])),
        ("10.0.0.2", "disk", "there is no export 'disk' (hidden)"),
        ("10.0.0.2", "vm-1", ("vm-2", "rule 'all'", ["exports"])),
        ("10.0.0.2", "vm-2", "rule 'all' has no export 'vm-2' (hidden)"),
        ("10.0.0.1", "vm-1", ("vm-2", "rule 'all'", ["exports"])),
    ],
)
def test_renamed(address: str, name: str, expected: object) -> None:
    assert found(access(RENAMING), name, client(address)) == expected


def test_a_renamed_export_is_not_had_by_its_old_name_of_a_later_rule() -> None:
    rules = access(
        '[[rule]]\nexports = "vm-1"\n'
        'policies = [ { use = "readonly" }, { use = "exports", rename = { vm-1 = "disk" } } ]\n'
        "[[rule]]\n"
    )
    assert found(rules, "disk") == ("vm-1", "rule 1", ["readonly", "exports"])
    assert found(rules, "vm-1") == "rule 1 has no export 'vm-1' (hidden)"
    with pytest.raises(NotGranted) as denied:
        rules.find(client(), "vm-1")
    assert denied.value.tried[1] == ("rule 2", "rule 1 comes before it for export 'vm-1'")
    assert listed(rules) == ["disk", "vm-2", ""]


def test_what_a_policy_does_not_show_goes_to_no_later_rule() -> None:
    rules = access(
        '[[rule]]\npolicies = [ { use = "exports", deny = ["vm-2"] } ]\nwho.tls = false\n[[rule]]\n'
    )
    assert found(rules, "vm-2") == "rule 1 has no export 'vm-2' (hidden)"
    assert listed(rules) == ["vm-1", ""]


NAMES = ("vm-1", "vm-2", "disk", "mine", "")
renames = st.dictionaries(st.sampled_from(("vm-1", "vm-2")), st.sampled_from(NAMES), max_size=2)
rule = st.tuples(
    st.sampled_from(("", 'who.network = "10.0.0.1"', "who.tls = true")),
    st.sampled_from(('["*"]', '["vm-1"]', '["vm-2", ""]')),
    st.sampled_from(("", "deny = true", 'deny = true\nmode = "observe"')),
    renames,
)


@given(st.lists(rule, min_size=1, max_size=4), st.sampled_from(["10.0.0.1", "10.0.0.2"]))
def test_what_is_listed_can_be_had_and_only_by_the_first_rule(
    written: list[tuple[str, str, str, dict[str, str]]], address: str
) -> None:
    text = ""
    for who, exports, deny, names in written:
        inside = ", ".join(f'"{ours}" = "{new}"' for ours, new in names.items())
        uses = f'policies = [ {{ use = "exports", rename = {{ {inside} }} }} ]' if names else ""
        text += f"[[rule]]\n{who}\nexports = {exports}\n{deny}\n{uses}\n"
    try:
        rules = Access(parse(config(text), "f", vocabulary()))
    except ConfigError:  # rules that are never reached, or names that are there twice
        return
    asks = client(address)
    for name in listed(rules, asks):
        assert isinstance(rules.find(asks, name), Grant)
    for name in NAMES:
        try:
            grant = rules.find(asks, name)
        except NotGranted:
            continue
        assert rules.again(asks, grant.name).rule == grant.rule


# --- Observed


def test_a_rule_that_is_observed_lets_pass() -> None:
    rules = access(
        '[[rule]]\nname = "strict"\ndeny = true\nmode = "observe"\nexports = "vm-1"\n'
        '[[rule]]\npolicies = [ { use = "readonly" } ]\n'
    )
    grant = rules.find(client(), "vm-1")
    assert (grant.rule, grant.would) == ("rule 2", ("rule 'strict' denies it",))
    assert grant.tried == (("rule 'strict'", "it denies, and is only observed"),)
    assert rules.again(client(), "vm-1").would == grant.would
    assert rules.find(client(), "vm-2").would == ()
    assert listed(rules) == ["vm-1", "vm-2", ""]


def test_an_observed_rule_for_others_would_do_nothing() -> None:
    rules = access(
        '[[rule]]\ndeny = true\nmode = "observe"\nwho.network = "10.0.0.9"\n'
        '[[rule]]\ndeny = true\nmode = "observe"\npolicies = [ { use = "schedule", days = ["mon"] } ]\n'
        "[[rule]]\n"
    )
    assert rules.find(client(), "vm-1").would == ()
    assert rules.find(client("10.0.0.9"), "vm-1").would == ("rule 1 denies it",)


def test_an_observed_denial_alone_lets_nobody_in() -> None:
    assert (
        found(access('[[rule]]\ndeny = true\nmode = "observe"\n'), "vm-1")
        == "no rule lets it through"
    )


def test_policies_of_an_observed_rule_are_observed() -> None:
    rules = access(
        '[[rule]]\nmode = "observe"\npolicies = [ { use = "readonly" } ]\n',
        more='policies = [ { use = "contexts" }, { use = "zero", mode = "observe" } ]',
    )
    chain = rules.find(client(), "vm-1").chain
    assert [(placed.name, placed.observed) for placed in chain] == [
        ("readonly", True),
        ("contexts", False),
        ("zero", True),
    ]


def test_a_policy_that_is_observed_admits() -> None:
    rules = access(more='policies = [ { use = "schedule", days = ["mon"], mode = "observe" } ]')
    [would] = rules.find(client(), "vm-1").would
    assert would.startswith("schedule: not at this time: sat")


def test_a_renaming_that_is_observed_renames_nothing() -> None:
    rules = access(
        '[[rule]]\npolicies = [ { use = "exports", rename = { vm-1 = "disk" }, mode = "observe" } ]\n'
    )
    assert found(rules, "vm-1") == ("vm-1", "rule 1", ["exports"])
    assert listed(rules) == ["vm-1", "vm-2", ""]


# --- What policies hear


@pytest.fixture
def heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, ...]]]:
    """What the policy `recorder` has heard, which is installed beside the gateway."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    Installed(tmp_path).install("recorders", {"recorder.py": RECORDER})
    catalogue.cache_clear()
    heard: list[tuple[str, ...]] = importlib.import_module("recorders.recorder").HEARD
    yield heard
    catalogue.cache_clear()
    for module in [*sys.modules]:
        if module.startswith("recorders"):
            del sys.modules[module]


def recorder(name: str, more: str = "") -> str:
    return f'policies = [ {{ use = "recorder", name = "{name}"{more} }} ]'


def test_policies_hear_of_who_is_denied(heard: list[tuple[str, ...]]) -> None:
    rules = access(
        f'[[rule]]\nexports = "vm-1"\n{recorder("rule", ", refuses = true")}\n'
        f'[[rule]]\nexports = "vm-2"\ndeny = true\n{recorder("denying")}\n',
        more=recorder("export"),
    )
    assert listed(rules) == []
    assert heard == []  # who looks at a list has not asked for anything
    for name in ("vm-1", "vm-2", "", "vm-3"):
        found(rules, name)
    assert heard == [
        ("denied", "rule", "vm-1", "recorder: rule refuses"),
        ("denied", "export", "vm-1", "recorder: rule refuses"),
        ("denied", "denying", "vm-2", "rule 2 denies it"),
        ("denied", "export", "vm-2", "rule 2 denies it"),
        ("denied", "export", "", "no rule lets it through"),
    ]
    heard.clear()
    # nor has who is shown a name that leads elsewhere
    rules = access(
        f'[[rule]]\nexports = "vm-2"\ndeny = true\n{recorder("denying")}\n'
        '[[rule]]\npolicies = [ { use = "exports", rename = { vm-1 = "vm-2" } } ]\n'
    )
    assert listed(rules) == [""]
    assert heard == []
    with pytest.raises(NotGranted):
        rules.again(client(), "vm-2")
    assert heard == []


def test_an_observed_refusal_is_none(heard: list[tuple[str, ...]]) -> None:
    rules = access(f"[[rule]]\n{recorder('rule', ', refuses = true')}\n" + 'mode = "observe"\n')
    assert rules.find(client(), "vm-1").would == ("recorder: rule refuses",)
    rules = access(f"[[rule]]\n{recorder('rule', ', breaks = true')}\n" + 'mode = "observe"\n')
    assert rules.find(client(), "vm-1").would == ("recorder: ZeroDivisionError: a bug",)
    assert heard == []
    rules = access(f"[[rule]]\n{recorder('rule', ', breaks = true')}\n")
    with pytest.raises(ZeroDivisionError):
        rules.find(client(), "vm-1")


def named(name: str, policy: str) -> str:
    return f'[[rule]]\nname = "{name}"\nwho.network = "10.0.0.{len(name)}"\n{recorder(policy)}\n'


UNNAMED = f'[[rule]]\nwho.network = "10.9.0.0/16"\n{recorder("unnamed")}\n'
INHERITED: list[tuple[str, str, list[tuple[str, ...]]]] = [
    # before, after, what is heard
    (named("a", "1"), named("a", "2"), [("inherit", "2", "1")]),
    (named("a", "1"), named("b", "2"), [("retire", "1")]),
    (
        named("a", "1") + named("bb", "2"),
        named("bb", "3"),
        [("inherit", "3", "2"), ("retire", "1")],
    ),
    (named("a", "1"), named("bb", "2") + named("a", "3"), [("inherit", "3", "1")]),
    (
        named("a", "1") + named("bb", "2"),
        named("bb", "3") + named("a", "4"),
        [("inherit", "4", "1"), ("inherit", "3", "2")],
    ),
    # without a name, it is known by whom it means
    (UNNAMED, named("a", "1") + UNNAMED, [("inherit", "unnamed", "unnamed")]),
    (UNNAMED, UNNAMED.replace("10.9.", "10.8."), [("retire", "unnamed")]),
    (UNNAMED, UNNAMED + 'mode = "observe"\n', [("inherit", "unnamed", "unnamed")]),
    (UNNAMED, "[[rule]]\n", [("retire", "unnamed")]),
    # two of one kind at one place
    (
        named("a", '1" }, { use = "recorder", name = "2'),
        named("a", '3" }, { use = "readonly" }, { use = "recorder", name = "4'),
        [("inherit", "3", "1"), ("inherit", "4", "2")],
    ),
]


@pytest.mark.parametrize(("before", "after", "expected"), INHERITED)
def test_who_inherits(
    before: str, after: str, expected: list[tuple[str, ...]], heard: list[tuple[str, ...]]
) -> None:
    access(after).inherit(access(before))
    assert heard == expected


def test_exports_inherit_by_their_name(heard: list[tuple[str, ...]]) -> None:
    before = access(exports=("a", "b"), more=recorder("old"))
    access(exports=("b", "c"), more=recorder("new")).inherit(before)
    assert heard == [("inherit", "new", "old"), ("retire", "old")]


class Stubborn(Policy):
    """Fails in whatever a reload asks of it."""

    def inherit(self, before: Policy) -> None:
        raise ZeroDivisionError("inherit")

    def retire(self) -> None:
        raise SystemExit(3)


def test_a_policy_that_fails_keeps_nobody_from_new_rules(heard: list[tuple[str, ...]]) -> None:
    before = access(named("a", "1") + named("bb", "2") + named("ccc", "3"))
    after = access(named("a", "4") + named("ccc", "5"))
    for rules in (before, after):
        for place in [place for place in rules._policies if place[1] != "ccc"]:
            rules._policies[place] = Stubborn()
    failed = after.inherit(before)
    assert [(policy, type(error)) for policy, error in failed] == [
        ("recorder of rule a", ZeroDivisionError),
        ("recorder of rule bb", SystemExit),
    ]
    assert heard == [("inherit", "5", "3")]


def test_options_of_policies_are_in_force() -> None:
    [placed] = access(more='policies = [ { use = "readonly" } ]').find(client(), "vm-1").chain
    assert placed.policy == Readonly()


# --- Names that nobody can have

RENAMED = """
[[rule]]
exports = "vm-*"
policies = [ { use = "exports", rename = { vm-1 = "one" }, deny = ["vm-2"] } ]
"""
SOME = '[[rule]]\nwho.network = "10.0.0.1"\n'
SCHEDULED = 'policies = [ { use = "schedule", days = ["mon"] } ]\n'
NOBODY: dict[str, tuple[str, str, str | None]] = {
    "no rules": ("", "vm-1", None),
    "for somebody": (SOME, "vm-1", None),
    "for other exports": (SOME + 'exports = "vm-1"\n', "vm-2", "no rule lets anybody through"),
    "denied to all": ("[[rule]]\ndeny = true\n", "vm-1", "rule 1 denies it to everybody"),
    "denied to some": (SOME + "deny = true\n[[rule]]\n", "vm-1", None),
    "denied to some, and for nobody": (SOME + "deny = true\n", "vm-1", "no rule lets anybody"),
    "denied behind": (SOME + "[[rule]]\ndeny = true\n", "vm-1", None),
    "denied at times": ("[[rule]]\ndeny = true\n" + SCHEDULED + SOME, "vm-1", None),
    "only observed": ('[[rule]]\ndeny = true\nmode = "observe"\n[[rule]]\n', "vm-1", None),
    "by another name": (RENAMED, "vm-1", None),
    "by none": (RENAMED, "vm-2", "rule 1 has it under no name for everybody"),
}


@pytest.mark.parametrize("nobody", NOBODY)
def test_who_can_have_a_name_at_all(nobody: str) -> None:
    rules, name, why = NOBODY[nobody]
    said = access(rules).why_nobody(name)
    assert (said is None) == (why is None), said
    assert why is None or (said is not None and why in said)
