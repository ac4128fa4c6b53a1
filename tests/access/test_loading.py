"""Packages of policies in a directory that is put on sys.path, with the metadata that pip would leave there."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, model_validator

from gateway.access.loading import (
    Catalogue,
    Option,
    PolicyError,
    catalogue,
    look_anew,
    options,
)
from gateway.policy import Cmd, Errno, Error, Policy, Size, View
from tests.tools.patience import HANG_SECONDS

GOOD = """
from gateway.policy import Policy

class Good(Policy):
    pass
"""


class Installed:
    """What is installed beside the gateway."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.packages: list[str] = []

    def install(self, package: str, files: dict[str, str], *, within: str | None = None) -> Path:
        """A distribution of one package, whose entry point names `within` (default: the package)."""
        folder = self.root.joinpath(*package.split("."))
        folder.mkdir(parents=True)
        for name, text in {"__init__.py": "", **files}.items():
            (folder / name).write_text(textwrap.dedent(text))
        metadata = self.root / f"{package.replace('.', '_')}-1.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
        (metadata / "entry_points.txt").write_text(
            f"[gateway.policies]\nmine = {within or package}\n"
        )
        importlib.invalidate_caches()
        self.packages.append(package.split(".")[0])
        return folder


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installed]:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    here = Installed(tmp_path)
    yield here
    for module in [*sys.modules]:
        if module.split(".")[0] in here.packages:
            del sys.modules[module]
    look_anew()  # or the tests after it would find them, too


def test_ours_are_found() -> None:
    names = catalogue().names()
    ours = Path(__file__).parents[2] / "policies"
    files = {path.stem.replace("_", "-") for path in ours.glob("[!_]*.py")}
    assert {name for name, package in names.items() if package == "policies"} == files
    assert catalogue().find("readonly").__module__ == "policies.readonly"
    assert catalogue() is catalogue()


@pytest.mark.parametrize("name", catalogue().names())
def test_every_one_can_be_had_and_described(name: str) -> None:
    assert all(each.description for each in options(catalogue().find(name)))


def test_nothing_is_imported_but_what_is_asked_for() -> None:
    program = (
        "import sys; from gateway.access.loading import catalogue; c = catalogue();"
        "print('policies' in sys.modules); c.names(); print('policies.readonly' in sys.modules);"
        "c.find('readonly'); print(*(m for m in sys.modules if m.startswith('policies.')))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=True,
    )
    assert ran.stdout.split() == ["False", "False", "policies.readonly"]


@pytest.mark.parametrize("at", ["leaves.py", "__init__.py"])
def test_one_that_ends_the_program_cannot_be_imported(installed: Installed, at: str) -> None:
    """Else `check` would end with status 0, and say nothing."""
    installed.install("acme", {"leaves.py": GOOD, at: "raise SystemExit(0)"})
    with pytest.raises(PolicyError, match="cannot be imported: SystemExit: 0"):
        Catalogue().find("leaves")


def test_what_is_installed_later_is_found_by_looking_anew(installed: Installed) -> None:
    assert "later" not in catalogue().names()
    installed.install("acme", {"later.py": GOOD})
    assert "later" not in catalogue().names()
    look_anew()
    assert "later" in catalogue().names()


def test_another_package_adds_some(installed: Installed) -> None:
    installed.install("acme", {"read_more.py": GOOD, "_shared.py": "1 / 0", "notes.txt": ""})
    found = Catalogue()
    assert found.names()["read-more"] == "acme"
    assert found.names()["readonly"] == "policies"
    assert not {"-shared", "_shared", "notes"} & found.names().keys()
    assert found.find("read-more").__module__ == "acme.read_more"


def test_a_package_inside_a_package(installed: Installed) -> None:
    installed.install("acme.policies", {"good.py": GOOD})
    assert Catalogue().names()["good"] == "acme.policies"
    assert Catalogue().find("good").__module__ == "acme.policies.good"


def test_a_folder_is_no_policy(installed: Installed) -> None:
    folder = installed.install("acme", {"good.py": GOOD})
    (folder / "more").mkdir()
    (folder / "more" / "__init__.py").write_text(GOOD)
    assert {name for name, package in Catalogue().names().items() if package == "acme"} == {"good"}


def test_two_of_one_name(installed: Installed) -> None:
    folder = installed.install("acme", {"readonly.py": GOOD})
    with pytest.raises(PolicyError) as failure:
        Catalogue().find("readonly")
    said = str(failure.value)
    assert said.startswith('two policies are named "readonly": ')
    assert str(folder / "readonly.py") in said
    assert str(Path("policies") / "readonly.py") in said


def test_two_of_one_name_in_two_directories_of_a_package(installed: Installed) -> None:
    folder = installed.install("acme", {"good.py": GOOD})
    other = installed.root / "other"
    other.mkdir()
    (other / "good.py").write_text(GOOD)
    (folder / "__init__.py").write_text(f"__path__.append({str(other)!r})")
    with pytest.raises(PolicyError) as failure:
        Catalogue().names()
    assert all(str(each / "good.py") in str(failure.value) for each in (folder, other))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("readnoly", 'no policy is named "readnoly", did you mean "readonly"?'),
        ("READONLY", 'no policy is named "READONLY", did you mean "readonly"?'),
        ("read_more", 'no policy is named "read_more", did you mean "read-more"?'),
    ],
)
def test_an_unknown_name(installed: Installed, name: str, said: str) -> None:
    installed.install("acme", {"read_more.py": GOOD})
    with pytest.raises(PolicyError, match=re.escape(said)):
        Catalogue().find(name)


def test_an_unknown_name_like_no_other() -> None:
    with pytest.raises(PolicyError, match=r'no policy is named "xyzzy"; known are .*readonly'):
        Catalogue().find("xyzzy")


def test_an_entry_point_whose_package_is_not_there(installed: Installed) -> None:
    installed.install("acme", {}, within="acme_policies")
    said = (
        'acme_policies, which the entry point "mine" of acme names in gateway.policies, cannot be'
        " imported: ModuleNotFoundError: No module named 'acme_policies'"
    )
    with pytest.raises(PolicyError, match=re.escape(said)):
        Catalogue().names()


def test_an_entry_point_that_names_a_file(installed: Installed) -> None:
    installed.install("acme", {"one.py": GOOD}, within="acme.one")
    with pytest.raises(PolicyError, match=r"acme\.one, .* is a file; expected a package"):
        Catalogue().names()


MISTAKES = {
    "no policy": ("", "FILE: no policy in it; expected one class, as in class Name(Policy), whose"),
    "one that is only imported": (
        "from policies.readonly import Readonly",
        "FILE: no policy in it",
    ),
    "two policies": (
        GOOD + "\nclass Better(Good): pass",
        "FILE: 2 policies in it: Good, Better; expected one.",
    ),
    "an exception": (
        "\n\n1 / 0",
        "FILE:3: cannot be imported: ZeroDivisionError: division by zero",
    ),
    "an exception in what it calls": (
        "import json\n\njson.loads('{')",
        "FILE:3: cannot be imported: JSONDecodeError: Expecting property name",
    ),
    "no Python": ("x = 1\nclass :\n", "FILE:2: cannot be imported: SyntaxError: invalid syntax"),
    "a wrong import": (
        "from gateway.policy import Polcy",
        "FILE:1: cannot be imported: ImportError: cannot import name 'Polcy'",
    ),
    "a hook that is misspelt": (
        "    async def raed(self, request, next): ...",
        'FILE:5: "raed" is no hook, did you mean "read"?; a method that is none has a name that',
    ),
    "a public helper": (
        "    @staticmethod\n    def frobnicate(x): ...",
        'FILE:5: "frobnicate" is no hook; a method that is none has a name that begins with _',
    ),
    "a data hook that is not async": (
        "    def each(self, request, next): ...",
        'FILE:5: the hook "each" has to be "async def", and not to yield',
    ),
    "a data hook that yields": (
        "    async def read(self, request, next):\n        yield b''",
        'FILE:5: the hook "read" has to be "async def", and not to yield',
    ),
    "a control hook that is async": (
        "    async def admit(self, client): ...",
        'FILE:5: the hook "admit" decides at once; expected "def", got "async def"',
    ),
    "a parameter too few": (
        "    async def read(self, request): ...",
        'FILE:5: the hook "read" is called with (self, request, next), and takes (self, request)',
    ),
    "a parameter too many": (
        "    def admit(self, client, export): ...",
        'FILE:5: the hook "admit" is called with (self, client), and takes (self, client, export)',
    ),
    "a hook without self": (
        "    @staticmethod\n    def describe(view): ...",
        'FILE:5: the hook "describe" is a staticmethod; expected a method',
    ),
    "a hook that is no method": (
        "    admit: ClassVar = None",
        'FILE: the hook "admit" is a NoneType; expected a method',
    ),
    "an option that hides a hook": (
        "    read: int = 1",
        'FILE: the option "read" takes the place of the hook of that name; give the field another',
    ),
}


@pytest.mark.filterwarnings("ignore:Field name:UserWarning")
@pytest.mark.parametrize(("body", "said"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_in_a_file(installed: Installed, body: str, said: str) -> None:
    if body.startswith("    "):
        body = (
            "from typing import ClassVar\nfrom gateway.policy import Policy\n\nclass Bad(Policy):\n"
        ) + body
    folder = installed.install("acme", {"bad.py": body})
    with pytest.raises(PolicyError) as failure:
        Catalogue().find("bad")
    assert str(failure.value).startswith(said.replace("FILE", str(folder / "bad.py")))
    assert "\n" not in str(failure.value)


def test_what_is_inherited_is_looked_at_too(installed: Installed) -> None:
    shared = "from gateway.policy import Policy\n\nclass Shared(Policy):\n    def raed(self): ...\n"
    installed.install(
        "acme",
        {
            "_shared.py": shared,
            "bad.py": "from acme._shared import Shared\n\nclass Bad(Shared):\n    pass\n",
        },
    )
    with pytest.raises(PolicyError, match='"raed" is no hook'):
        Catalogue().find("bad")


def test_what_a_policy_may_have(installed: Installed) -> None:
    body = """
        from typing import ClassVar
        from pydantic import field_validator, model_validator
        from gateway.policy import Field, Policy, PrivateAttr

        class _Base(Policy):
            def describe(self, view): return view

        class Good(_Base):
            timed: ClassVar[bool] = True
            size: int = Field(1, description="A size.")
            _seen: int = PrivateAttr(0)

            @model_validator(mode="after")
            def check(self): return self

            @field_validator("size")
            @classmethod
            def positive(cls, value): return value

            @property
            def double(self): return self.size * 2

            def model_post_init(self, context): ...

            async def read(self, request, next, *, patience_seconds=1): return await next(request)

            def admit(self, *everything): ...

            def _helper(self): ...
    """
    installed.install("acme", {"good.py": body})
    assert Catalogue().find("good").__name__ == "Good"


class Example(Policy):
    """A policy with options of every type."""

    offset: Size = Field(description="Where it begins.")
    longest_request: Size = Field(default=65536, description="How long.")
    end: Size | None = Field(default=None, description="Where it ends.")
    error: Error = Field(default=Errno.EPERM, description="What is told.")
    mode: Literal["none", "emulate"] = Field(default="none", description="How.")
    only: Literal["this"] = Field(default="this", description="One.")
    of: tuple[Cmd, ...] = Field(default=(Cmd.READ,), alias="commands", description="Which.")
    ranges: tuple[Size, ...] = Field(default=(4096,), description="Where.")
    allow: list[str] = Field(default_factory=lambda: ["a", "b"], description="What.")
    names: frozenset[str] = Field(default=frozenset("ba"), description="Whom.")
    rename: dict[str, str] = Field(default_factory=lambda: {"a": "b"}, description="To what.")
    rate: float = Field(default=0.5, ge=0, le=1, description="How often.")
    count: int = Field(default=3, gt=0, description="How many.")
    quiet: bool = Field(default=False, description="Say nothing.")
    either: int | str = Field(default="x", description="Or.")
    read_seconds: float = Field(default=0, alias="read", description="Wait.")

    @model_validator(mode="after")
    def _check(self) -> Example:
        return self

    def describe(self, view: View) -> View:
        return view


def test_options_in_words() -> None:
    size = 'size such as "64K"'
    errors = '"EPERM", "EIO", "ENOMEM", "EINVAL", "ENOSPC", "EOVERFLOW", "ENOTSUP", "ESHUTDOWN"'
    commands = "0, 1, 2, 3, 4, 5, 6, 7"
    assert options(Example) == [
        Option("offset", size, "", True, "Where it begins."),
        Option("longest-request", size, '"64K"', False, "How long."),
        Option("end", size, "", False, "Where it ends."),
        Option("error", errors, '"EPERM"', False, "What is told."),
        Option("mode", '"none", "emulate"', '"none"', False, "How."),
        Option("only", '"this"', '"this"', False, "One."),
        Option("commands", f"list of {commands}", '["READ"]', False, "Which."),
        Option("ranges", f"list of {size}", '["4K"]', False, "Where."),
        Option("allow", "list of text", '["a", "b"]', False, "What."),
        Option("names", "list of text", '["a", "b"]', False, "Whom."),
        Option("rename", "table", '{ a = "b" }', False, "To what."),
        Option("rate", "number, at least 0, at most 1", "0.5", False, "How often."),
        Option("count", "whole number, over 0", "3", False, "How many."),
        Option("quiet", "true or false", "false", False, "Say nothing."),
        Option("either", "whole number or text", '"x"', False, "Or."),
        Option("read", "number", "0", False, "Wait."),
    ]
