"""A policy is installed by being there: a file in `policies`, or in a package of somebody else's."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

import policies

from .clients import nbdinfo, nbdsh
from .gateways import MODE
from .processes import Finished, Process, attempt, listening
from .servers import Servers, unix_uri

pytestmark = pytest.mark.skipif(MODE != "gateway", reason="a blind relay has no policies")

KIB = 1 << 10
OURS = Path(policies.__file__).parent
REPOSITORY = OURS.parent

SHARE = '''
"""Show the first part of the disk.

    policies = [ {{ use = "{name}", parts = 4 }} ]
"""

from gateway.policy import Cmd, Errno, Field, Policy, Table, View


class Share(Policy):
    """`use = "{name}"`."""

    parts: int = Field(default=2, ge=1, description="How many parts the disk has.")

    def describe(self, view: View) -> View:
        """Give the first part."""
        return view.window(0, view.size // self.parts)

    def commands(self, table: Table) -> None:
        """Keep the first block."""
        table.protect(0, 512, error=Errno.ENOSPC, text="the first block stays")
'''
BROKEN = {
    "a hook that is none": ("    def raed(self, request, next):\n        pass", "raed"),
    "a signature": ("    def describe(self):\n        pass", "describe"),
    "a syntax error": ("    def describe(self, view:\n", "SyntaxError"),
    "an import": ("    import nothing_of_this_name", "nothing_of_this_name"),
}


@dataclass
class Install:
    """A directory that stands before all others on Python's path."""

    root: Path

    def command(self, *arguments: str | Path) -> list[str]:
        path = os.pathsep.join([str(self.root), str(REPOSITORY)])
        # Without -P, the directory in which the tests run would come before it.
        python = ["env", f"PYTHONPATH={path}", "PYTHONDONTWRITEBYTECODE=1", sys.executable, "-P"]
        return [*python, "-m", "gateway", *map(str, arguments)]

    def copy_of_ours(self, name: str, text: str) -> Path:
        """All of our policies, and one more file."""
        folder = self.root / "policies"
        shutil.copytree(OURS, folder, ignore=shutil.ignore_patterns("__pycache__"))
        file = folder / f"{name}.py"
        file.write_text(text)
        return file

    def package(self, name: str, text: str) -> Path:
        """A distribution of another's, as pip leaves it."""
        folder = self.root / "acme_nbd"
        folder.mkdir()
        (folder / "__init__.py").touch()
        file = folder / f"{name}.py"
        file.write_text(text)
        metadata = self.root / "acme_nbd-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-nbd\nVersion: 1.0\n")
        entry = "[gateway.policies]\nacme = acme_nbd\n"
        (metadata / "entry_points.txt").write_text(entry)
        return file

    def configuration(self, upstream: str, use: str) -> Path:
        config = self.root / "gateway.toml"
        config.write_text(
            textwrap.dedent(f"""
            [[listen]]
            uri = "{unix_uri(self.root / "sock")}"
            [upstream.disk]
            uri = "{upstream}"
            [[export]]
            name = "vm"
            upstream = "disk"
            upstream-name = ""
            policies = [ {{ use = "readonly", mode = "observe" }}, {use} ]
            """)
        )
        return config

    def checked(self, use: str) -> Finished:
        config = self.configuration("nbd://localhost", use)
        return attempt(*self.command("check", config))


@pytest.fixture
def install(workdir: Path) -> Install:
    root = workdir / "site"
    root.mkdir()
    return Install(root)


@pytest.mark.parametrize("where", ["in ours", "in another package"])
def test_a_new_file_works_with_no_other_edit(
    where: str, install: Install, servers: Servers
) -> None:
    put = install.copy_of_ours if where == "in ours" else install.package
    put("first_share", SHARE.format(name="first-share"))
    upstream = servers.nbdkit("memory", "1M")
    config = install.configuration(upstream.uri, '{ use = "first-share", parts = 4 }')
    gateway = Process(*install.command("serve", "--config", config))
    listen = unix_uri(install.root / "sock")
    gateway.ready_when(lambda: listening(listen), "the gateway listens")
    uri = unix_uri(install.root / "sock", "vm")
    assert nbdinfo(uri)["exports"][0]["export-size"] == 256 * KIB
    said = nbdsh(
        f"h.connect_uri({uri!r})\nh.pwrite(b'x' * 512, 512)\nprint(h.pread(1, 600))\n"
        "try:\n    h.pwrite(b'x', 511)\nexcept nbd.Error as error:\n    print(error.errno)"
    )
    assert said == "bytearray(b'x')\nENOSPC\n"
    assert gateway.stop() == 0
    assert "Traceback" not in gateway.output

    checked = attempt(*install.command("check", config))
    assert checked.status == 0, checked
    listed = attempt(*install.command("policies"))
    assert "first-share" in listed.out
    assert "Show the first part of the disk." in listed.out
    explained = attempt(*install.command("policies", "first-share"))
    assert "How many parts the disk has." in explained.out


@pytest.mark.parametrize("where", ["in ours", "in another package"])
@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_one_is_named_with_its_file_and_line(
    where: str, broken: str, install: Install
) -> None:
    put = install.copy_of_ours if where == "in ours" else install.package
    body, named = BROKEN[broken]
    text = f"from gateway.policy import Policy\n\n\nclass Bad(Policy):\n{body}\n"
    file = put("bad", text)
    checked = install.checked('{ use = "bad" }')
    assert checked.status == 1, checked
    assert f"{file}:5: " in checked.err
    assert named in checked.err
    assert "Traceback" not in checked.err
    # So does a gateway that is started with it; and one that does not use it is not disturbed.
    served = attempt(*install.command("serve", "--config", install.root / "gateway.toml"))
    assert served.status
    assert f"{file}:5: " in served.err + served.out
    assert install.checked('{ use = "fua", mode = "enforce" }').err.count("bad.py") == 0


def test_mistakes_in_its_options_have_the_configurations_line(install: Install) -> None:
    install.package("first_share", SHARE.format(name="first-share"))
    misspelt = install.checked('{ use = "first-share", prats = 2 }')
    assert misspelt.status == 1
    assert f"{install.root / 'gateway.toml'}:10: " in misspelt.err
    assert 'did you mean "parts"?' in misspelt.err
    unknown = install.checked('{ use = "frist-share" }')
    assert f"{install.root / 'gateway.toml'}:10: " in unknown.err
    assert 'did you mean "first-share"?' in unknown.err


def test_two_of_one_name(install: Install) -> None:
    ours = install.copy_of_ours("first_share", SHARE.format(name="first-share"))
    theirs = install.package("first_share", SHARE.format(name="first-share"))
    checked = install.checked('{ use = "first-share" }')
    assert checked.status == 1
    assert str(ours) in checked.err
    assert str(theirs) in checked.err
