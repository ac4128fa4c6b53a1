"""What README.md tells its reader to type works."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.access.rules import Access, NotGranted
from gateway.cli.serve import build_config
from gateway.cli.vocabulary import vocabulary
from gateway.config import parse
from gateway.embedded import PERSONALITIES
from gateway.identity import Identity
from gateway.policy import Client
from tests.tools.patience import HANG_SECONDS

pytestmark = pytest.mark.real

TOP = Path(__file__).parent.parent
README = (TOP / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    lines = re.findall(r"^\$ nbd-gateway (.*)$", "\n".join(blocks("console")), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def coming_from(address: str) -> Client:
    return Client(Identity.at(address, 1000), datetime.now(UTC))


def test_its_configurations_are_some() -> None:
    exports, rules = (parse(text, "README.md", vocabulary()) for text in blocks("toml"))
    route = exports.route("backup")
    assert route is not None
    assert route.upstream_name == "disk0"
    access = Access(rules)
    grant = access.find(coming_from("10.1.2.3"), "backup")
    assert [placed.name for placed in grant.chain] == ["readonly"]
    with pytest.raises(NotGranted):
        access.find(coming_from("10.2.0.1"), "backup")


def test_it_names_the_old_servers_that_are_built_in() -> None:
    assert "legacy:" in "\n".join(blocks("console"))
    assert "legacy:" in "\n".join(blocks("toml"))
    assert "(docs/configuration.md#uris)" in README
    page = (TOP / "docs" / "configuration.md").read_text()
    [section] = re.findall(r"(?ms)^## URIs\n(.*?)^## ", page)
    assert all(f"`legacy:{name}`" in section for name in PERSONALITIES)


def test_its_commands_run(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    ran = 0
    for arguments in commands():
        if arguments[0] == "serve" and "--run" not in arguments:
            continue  # the next test
        asks = arguments[0] in ("explain", "probe", "conform")
        if asks and not any(argument.startswith("legacy:") for argument in arguments):
            continue  # they ask a server: tests/cli/test_explain.py, tests/interop/test_{probe,conform}.py
        done = subprocess.run(
            [sys.executable, "-m", "gateway", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
            check=False,
        )
        # An old server puts data at risk, which is a status of its own (docs/probe.md).
        assert done.returncode == (3 if asks else 0), (arguments, done.stderr)
        ran += 1
    assert ran >= 4


def test_its_servers_can_be_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gateway.toml").write_text(blocks("toml")[0])
    for verb, *arguments in commands():
        if verb != "serve" or "--run" in arguments:
            continue
        said = list(itertools.pairwise(arguments))
        listen = tuple(b for a, b in said if a == "--listen")
        keys = {a.removeprefix("--tls-"): b for a, b in said if a.startswith("--tls-")}
        if arguments[0] == "--config":
            assert build_config(None, config=Path(arguments[1])).listen
        else:
            assert build_config(arguments[0], listen=listen, listener=keys).listen


def test_its_two_commands_are_targets() -> None:
    makefile = (TOP / "Makefile").read_text()
    for target in (
        "demo",
        "test",
        "test-trixie",
        "install",
        "lint",
        "bench",
        "fuzz",
        "fuzz-coverage",
    ):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_its_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (TOP / target).exists(), target


def test_installing_goes_by_paths_and_names_every_extra() -> None:
    [section] = re.findall(r"(?ms)^## Install\n(.*?)^## ", README)
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    wheel = f"dist/{project['name'].replace('-', '_')}-*.whl"
    lines = re.findall(r"(?m)^(?:\S*/)?(pipx?) (install|wheel) (.*?)(?: +#.*)?$", section)
    given = {(program, verb): arguments for program, verb, arguments in lines}
    assert given == {
        ("pip", "install"): wheel,  # the last of two
        ("pipx", "install"): ".",
        ("pip", "wheel"): "--no-deps --wheel-dir dist .",
    }
    assert "/bin/pip install . " in section
    for extra in project["optional-dependencies"]:
        assert f"pip install '.[{extra}]'" in section
    assert project["requires-python"] == ">=3.11"
    assert "Python 3.11 or later" in section
    # Whoever has the name on an index, it is not this project.
    assert "pip install nbd-gateway" not in README


def test_it_says_of_qemu_3_0_what_is_so() -> None:
    """Its connections were coherent wherever they were tried; what hangs and what reads zeros was seen."""
    intro = " ".join(README.partition("## Try it")[0].split())
    assert "corrupt" not in intro
    for fault in ("hangs for ever", "zeros for data", "a CACHE ends the session", "dirty bitmaps"):
        assert fault in intro
