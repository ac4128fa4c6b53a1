import pytest
from hypothesis import given, reject
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.policy import ListedExport
from policies.exports import Exports
from tests.policies.harness import configured, view

NAMES = ["", "vm-1", "vm-2", "vm-9", "disk"]
LISTED = [ListedExport(name, f"our {name}") for name in NAMES]


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({}, {name: name for name in NAMES}),
        ({"allow": []}, {}),
        ({"allow": ["vm-*"]}, {"vm-1": "vm-1", "vm-2": "vm-2", "vm-9": "vm-9"}),
        ({"allow": ["VM-*"]}, {}),
        ({"allow": ["vm-*"], "deny": ["*-[89]"]}, {"vm-1": "vm-1", "vm-2": "vm-2"}),
        ({"deny": ["?*"]}, {"": ""}),
        (
            {"rename": {"vm-1": "new"}, "deny": ["vm-9"]},
            {"": "", "new": "vm-1", "vm-2": "vm-2", "disk": "disk"},
        ),
        # A new name hides ours.
        ({"rename": {"vm-1": "disk"}, "deny": ["vm-2", "vm-9", ""]}, {"disk": "vm-1"}),
        ({"rename": {"vm-1": ""}, "allow": ["vm-1"]}, {"": "vm-1"}),
        (
            {"rename": {"vm-1": "vm-2", "vm-2": "vm-1"}, "allow": ["vm-[12]"]},
            {"vm-2": "vm-1", "vm-1": "vm-2"},
        ),
        ({"rename": {"vm-1": "vm-1"}, "allow": ["vm-1"]}, {"vm-1": "vm-1"}),
        # A pattern that a new name matches is about our names.
        ({"rename": {"vm-1": "vm-9"}, "allow": ["vm-1"], "deny": ["vm-9"]}, {"vm-9": "vm-1"}),
    ],
)
def test_names(options: dict[str, object], shown: dict[str, str]) -> None:
    policy = configured(Exports, options)
    assert {export.name: export.description for export in policy.exports(LISTED)} == {
        new: f"our {ours}" for new, ours in shown.items()
    }
    for name in [*NAMES, "new"]:
        ours = policy.asked(name)
        assert (ours if ours in NAMES else None) == shown.get(name)
    assert not policy.hooked(view())


def test_a_text_is_for_our_name() -> None:
    options = {"rename": {"vm-1": "disk"}, "describe": {"vm-1": "of VM 1"}, "deny": ["vm-2", ""]}
    policy = configured(Exports, options)
    assert policy.exports(LISTED) == [
        ListedExport("disk", "of VM 1"),
        ListedExport("vm-9", "our vm-9"),
    ]


NAME = st.sampled_from(["", "a", "b", "c", "d"])
PATTERNS = st.lists(st.sampled_from(["*", "", "a", "?", "[ab]", "b*"]), max_size=2)


@given(
    exports=st.sets(NAME),
    allow=PATTERNS,
    deny=PATTERNS,
    rename=st.dictionaries(NAME, NAME, max_size=3),
)
def test_what_is_listed_can_be_asked_for_and_nothing_else(
    exports: set[str], allow: list[str], deny: list[str], rename: dict[str, str]
) -> None:
    try:
        policy = configured(Exports, {"allow": allow, "deny": deny, "rename": rename})
    except ValidationError:
        reject()
    shown = [export.name for export in policy.exports([ListedExport(name) for name in exports])]
    assert len(set(shown)) == len(shown)
    leads = {name: policy.asked(name) for name in ["", "a", "b", "c", "d", "e"]}
    assert {name for name, ours in leads.items() if ours in exports} == set(shown)
    found = [leads[name] for name in shown]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rename": {"a": "x", "b": "x"}}, '"a" and "b" are both renamed to "x"'),
        ({"rename": {"a": "b"}, "deny": ["a"]}, '"a" is renamed to "b", and not allowed'),
        ({"rename": {"a": "b"}, "allow": ["b"]}, '"a" is renamed to "b", and not allowed'),
        (
            {"rename": {"a": "b"}, "allow": ["a", "b"]},
            '"a" is renamed to "b", which is the name of',
        ),
        (
            {"rename": {"a": "b"}, "describe": {"b": "x"}},
            '"a" is renamed to "b", which is the name of',
        ),
        ({"describe": {"a": "x"}, "deny": ["a"]}, '"a" is described, and not allowed'),
        ({"rename": {"a": "é" * 2049}}, "expected at most 4096 bytes, got 4098"),
        ({"describe": {"a": "x" * 4097}}, "expected at most 4096 bytes, got 4097"),
        ({"rename": ["a"]}, "rename"),
        ({"renam": {}}, "renam"),
    ],
)
def test_mistakes(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        configured(Exports, options)
    assert message in str(caught.value)


def test_the_longest_name_is_taken() -> None:
    assert configured(Exports, {"rename": {"a": "x" * 4096}}).asked("x" * 4096) == "a"


def test_names_that_mean_no_export_are_mistakes() -> None:
    options = {"allow": ["vm-*", "vm_1"], "deny": ["secert"], "describe": {"vm-1": "text"}}
    policy = configured(Exports, options)
    assert list(policy.mistakes(["vm-1", "secret"])) == [
        'no [[export]] has a name like "vm_1", did you mean "vm-1"?',
        'no [[export]] has a name like "secert", did you mean "secret"?',
    ]
    assert not [*configured(Exports, {}).mistakes(["vm-1"])]
