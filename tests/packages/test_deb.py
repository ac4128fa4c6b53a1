"""The Debian package: installed, used, replaced and removed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tools.patience import HANG_SECONDS
from tests.walkthrough import run as walk

from .roots import PYTHONS, TOP, Root, fresh, interpreter

pytestmark = pytest.mark.real

TUTORIALS = sorted((TOP / "docs/tutorials").glob("*.md"))
CONFIG = "etc/nbd-gateway/gateway.toml"


@pytest.fixture(scope="module", params=PYTHONS)
def suite(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def package(suite: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(suite, tmp_path_factory.mktemp("deb"))


def made(suite: str, there: Path) -> Path:
    program = str(TOP / "packaging/deb.py")
    command = [sys.executable, program, str(there), interpreter(PYTHONS[suite])]
    subprocess.run(command, check=True, timeout=HANG_SECONDS)
    [package] = there.iterdir()
    return package


@pytest.fixture(scope="module")
def untouched(suite: str, tmp_path_factory: pytest.TempPathFactory) -> Root:
    return fresh(suite, tmp_path_factory.mktemp("untouched"))


@pytest.fixture(scope="module")
def root(suite: str, package: Path, tmp_path_factory: pytest.TempPathFactory) -> Root:
    """A Debian in which it is installed."""
    debian = fresh(suite, tmp_path_factory.mktemp("root"))
    install(debian, package)
    return debian


def install(root: Root, package: Path) -> str:
    (root.path / "tmp" / package.name).write_bytes(package.read_bytes())
    return root.run("dpkg", "--install", f"/tmp/{package.name}")


def test_its_modules_are_in_a_folder_of_their_own(root: Root) -> None:
    listed = root.run("dpkg", "--listfiles", "nbd-gateway").splitlines()
    assert not [each for each in listed if "dist-packages" in each or "site-packages" in each]
    modules = {each for each in listed if each.endswith((".py", ".so"))}
    assert modules
    assert all(each.startswith("/usr/lib/nbd-gateway/") for each in modules)
    for module in ("gateway", "trio"):
        assert "No module named" in root.run("python3", "-c", f"import {module}", status=1)
    assert "(build " in root.run("nbd-gateway", "--version")
    assert not root.run("dpkg", "--verify", "nbd-gateway")


def test_it_has_a_manual_and_completions(root: Root) -> None:
    share = root.path / "usr/share"
    for name in (
        "man/man1/nbd-gateway-serve.1.gz",
        "man/man5/nbd-gateway.toml.5.gz",
        "bash-completion/completions/nbd-gateway",
        "zsh/vendor-completions/_cyclopts_nbd-gateway",
        "fish/vendor_completions.d/nbd-gateway.fish",
        "doc/nbd-gateway/nbd-gateway.cdx.json",
    ):
        assert (share / name).is_file(), name
    loaded = "source /usr/share/bash-completion/completions/nbd-gateway; complete -p nbd-gateway"
    assert "nbd_gateway nbd-gateway" in root.run("bash", "--norc", "-c", loaded)


def test_it_serves_as_the_unit_has_it(root: Root) -> None:
    """Without systemd, which no chroot has: its lines, by its user."""
    unit = (root.path / "lib/systemd/system/nbd-gateway.service").read_text()
    said = dict(line.split("=", 1) for line in unit.splitlines() if line.startswith("ExecStart"))
    user = ("setpriv", "--reuid=nbd-gateway", "--regid=nbd-gateway", "--init-groups")
    root.run(*user, "nbd-gateway", "check", f"/{CONFIG}")
    run = [*user, *said["ExecStart"].split()]
    process = subprocess.Popen(root.inside(tuple(run)), stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said_so_far = ""
        while "listening" not in said_so_far:
            line = process.stderr.readline()
            assert line, said_so_far
            said_so_far += line
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_SECONDS) == 0
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=HANG_SECONDS)


def test_systemd_takes_the_unit(root: Root) -> None:
    unit = "/lib/systemd/system/nbd-gateway.service"
    assert not root.run("systemd-analyze", "verify", "--man=no", unit)
    root.run("systemd-analyze", "security", "--offline=true", "--threshold=20", unit)


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial(root: Root, page: Path) -> None:
    there = root.path / "tmp" / page.stem
    there.mkdir()
    walk(page.read_text(), there, root.typed_in("/usr/bin"))


def test_an_upgrade_keeps_what_was_changed(root: Root, package: Path) -> None:
    config = root.path / CONFIG
    config.write_text("# mine\n" + config.read_text())
    install(root, package)
    assert config.read_text().startswith("# mine\n")


def test_nothing_is_left_of_it(root: Root, untouched: Root) -> None:
    """It goes last: the others need it."""
    root.run("dpkg", "--remove", "nbd-gateway")
    assert (root.path / CONFIG).exists()
    assert not (root.path / "usr/lib/nbd-gateway").exists()
    root.run("dpkg", "--purge", "nbd-gateway")
    assert not root.files() - untouched.files()
    assert "nbd-gateway" not in (root.path / "etc/passwd").read_text()
    assert not (root.path / "var/log/nbd-gateway").exists()


def test_it_says_for_which_python_it_is(suite: str, package: Path) -> None:
    minor = PYTHONS[suite]
    depends = subprocess.run(
        ["dpkg-deb", "--field", package, "Depends"], capture_output=True, text=True, check=True
    ).stdout
    assert f"python3 (>= 3.{minor}), python3 (<< 3.{minor + 1})" in depends


def test_two_are_the_same(suite: str, package: Path, tmp_path: Path) -> None:
    time.sleep(1 - time.time() % 1)  # in another second
    again = made(suite, tmp_path)
    assert again.read_bytes() == package.read_bytes()
