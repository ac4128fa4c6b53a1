"""What pip makes of this repository, and installs elsewhere, is the whole program.

As README has it, but no index is asked: the wheel is built with what is installed here, and finds its
dependencies where they are installed here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import gateway
from tests.interop.processes import Process
from tests.packing import packing
from tests.tools.patience import HANG_SECONDS

pytestmark = pytest.mark.real

TOP = Path(__file__).parent.parent
HOOK = packing("hook")
PACKAGES = ("gateway", "policies")
BUILD = "gateway/BUILD"
SHARED = {
    "man/man1/nbd-gateway.1",
    "man/man1/nbd-gateway-pki-init.1",
    "man/man5/nbd-gateway.toml.5",
    "bash-completion/completions/nbd-gateway",
    "zsh/site-functions/_cyclopts_nbd-gateway",
    "fish/vendor_completions.d/nbd-gateway.fish",
}


def run(*command: str | Path, cwd: Path = TOP) -> str:
    """Run a program that knows nothing of this repository but what its arguments say; give what it prints."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=apart(),
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def apart() -> dict[str, str]:
    ours = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return {**ours, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel_of(TOP, tmp_path_factory.mktemp("dist"))


def wheel_of(source: Path, dist: Path) -> Path:
    build = ("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", dist)
    run(sys.executable, "-m", "pip", *build, source)
    [found] = dist.iterdir()
    return found


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of programs of an environment that the wheel is installed in."""
    return installed(wheel, tmp_path_factory.mktemp("installed") / "venv")


def installed(wheel: Path, there: Path) -> Path:
    """Install a wheel in an environment, which is made if it is not there; give its programs' directory."""
    python = there / "bin" / "python"
    if not there.exists():
        venv.create(there, symlinks=True)
    # The environment needs no pip of its own: this one installs there.
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--no-deps", wheel)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # As a plain directory: what .pth files in it say, of this repository for one, is not obeyed.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent


def test_the_wheel_has_all_of_both_packages_and_nothing_else(wheel: Path) -> None:
    pump = f"_pump{sysconfig.get_config_var('EXT_SUFFIX')}"
    is_pure = wheel.name == f"nbd_gateway-{gateway.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    here = {
        str(path.relative_to(TOP))
        for package in PACKAGES
        for path in (TOP / package).rglob("*")
        if path.is_file()
        and "__pycache__" not in path.parts
        and (path.suffix != ".so" or (path.name == pump and not is_pure))
    }
    shared = {name for name in packed if ".data/data/share/" in name}
    assert packed - shared - {BUILD} == here
    assert {name.partition("/share/")[2] for name in shared} > SHARED
    assert is_pure == (f"gateway/hub/{pump}" not in packed)
    assert {f"{package}/py.typed" for package in PACKAGES} < packed


def test_its_program_is_the_one_that_was_installed(programs: Path, tmp_path: Path) -> None:
    assert run(programs / "nbd-gateway", "-V", cwd=tmp_path).split()[0] == gateway.__version__
    where = "import gateway, policies; print(gateway.__file__, policies.__file__)"
    for file in run(programs / "python", "-c", where, cwd=tmp_path).split():
        assert Path(file).is_relative_to(programs.parent), file


def test_it_says_of_which_commit_it_is(programs: Path, tmp_path: Path) -> None:
    digits = f"[0-9a-f]{{{HOOK.COMMIT_LENGTH}}}"
    said = run(programs / "nbd-gateway", "-V", cwd=tmp_path)
    assert re.search(rf" \(build {digits}(-changed)?, with", said), said


def test_its_manual_lies_beside_it(programs: Path) -> None:
    """Where man looks for that of a program: bin/../share/man."""
    assert all((programs.parent / "share" / each).is_file() for each in SHARED)


def sdist(source: Path, there: Path) -> Path:
    build = ("build", "--target", "sdist", "--directory", there)
    run(sys.executable, "-m", "hatchling", *build, cwd=source)
    [made] = there.iterdir()
    return made


def test_an_sdist_is_the_same_wherever_it_is_made(tmp_path: Path) -> None:
    """Of the repository, and of what was unpacked of it by somebody else, long before."""
    first = sdist(TOP, tmp_path / "first")
    with tarfile.open(first) as archive:
        archive.extractall(tmp_path / "elsewhere", filter="data")
    [unpacked] = (tmp_path / "elsewhere").iterdir()
    for each in unpacked.rglob("*"):
        os.utime(each, (1, 1))
        each.chmod(each.stat().st_mode & 0o700)
    assert sdist(unpacked, tmp_path / "second").read_bytes() == first.read_bytes()


def test_its_policies_quirks_and_template_came_along(programs: Path, tmp_path: Path) -> None:
    program = programs / "nbd-gateway"
    for page in (("policies", "--markdown"), ("quirks", "--markdown"), ("schema",)):
        assert run(program, *page, cwd=tmp_path) == run(sys.executable, "-m", "gateway", *page)
    run(program, "init", cwd=tmp_path)
    assert "gateway.toml: ok" in run(program, "check", cwd=tmp_path)


def test_it_serves(programs: Path, tmp_path: Path) -> None:
    seen = "nbdinfo --size $uri"
    serve = ("serve", "legacy:qemu-3.0,size=1M", "--run", seen)
    assert run(programs / "nbd-gateway", *serve, cwd=tmp_path) == f"{1 << 20}\n"


@contextmanager
def demo(program: Path, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [program, "demo"], cwd=cwd, env=apart(), stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            yield process
        finally:
            process.terminate()


def test_it_has_a_demo(programs: Path, tmp_path: Path) -> None:
    with demo(programs / "nbd-gateway", tmp_path) as process:
        assert process.stdout is not None
        # All that it shows comes before it serves.
        assert any("CAN_MULTI_CONN" in line for line in process.stdout)


# ---- what 0.1.0 has left ----

LAST_OF_0_1_0 = "227686d9eccf"
"""The last commit of 0.1.0 that was handed on. It has no tag."""

AS_0_1_0_HAD_IT = """
drain-seconds = 5
[[listen]]
uri = "nbd+unix:///?socket={here}/plain"
socket-mode = "0600"
[[listen]]
uri = "nbds+unix:///?socket={here}/tls"
certificates = "{here}/pki"
[upstream.disk]
uri = "file:{here}/disk.img"
[[export]]
name = "disk"
upstream = "disk"
upstream-name = ""
[[rule]]
name = "all"
policies = [ {{ use = "audit", file = "{here}/audit", writes = true }} ]
[control]
socket = "{here}/control"
"""


@pytest.fixture
def old_wheel(tmp_path: Path) -> Path:
    """The wheel of 0.1.0, of the repository's history."""
    git = ("git", "-C", TOP)
    if not (TOP / ".git").exists() or "true" in run(*git, "rev-parse", "--is-shallow-repository"):
        pytest.skip("0.1.0 is made of the history, and this copy of the repository has none")
    archive = tmp_path / "0.1.0.tar"
    run(*git, "archive", "--output", archive, LAST_OF_0_1_0)
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "0.1.0", filter="data")
    return wheel_of(tmp_path / "0.1.0", tmp_path / "old")


def test_configuration_and_state_of_0_1_0_are_kept(
    old_wheel: Path,
    wheel: Path,
    tmp_path: Path,
    workdir: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Also under a gateway that runs meanwhile, and after one that was killed and has tidied nothing up."""
    program = installed(old_wheel, tmp_path / "venv") / "nbd-gateway"
    template, config, disk = (workdir / name for name in ("init.toml", "gateway.toml", "disk.img"))
    run(program, "init", template)
    run(program, "pki", "init", workdir / "pki")
    config.write_text(AS_0_1_0_HAD_IT.format(here=workdir))
    disk.write_bytes(bytes(1 << 20))
    written = {each: each.read_bytes() for each in (template, config, *workdir.glob("pki/*"))}
    serve = (program, "serve", "--config", config, "--pidfile", workdir / "pid")
    plain = f"nbd+unix:///disk?socket={workdir}/plain"
    secure = f"nbds+unix://localhost/disk?socket={workdir}/tls&tls-certificates={workdir}/pki"

    def serving() -> Process:
        """Start it, and wait for its pidfile: clients can connect then."""
        process = Process(*serve)
        request.addfinalizer(process.kill)
        pid = workdir / "pid"
        said = f"{process.pid}\n"
        process.ready_when(lambda: pid.exists() and pid.read_text() == said, "it serves")
        return process

    old = serving()
    run("qemu-io", "-f", "raw", "-c", "write -P 7 0 4k", plain)

    installed(wheel, tmp_path / "venv")
    assert run(program, "-V").split()[0] == gateway.__version__
    run("qemu-io", "-f", "raw", "-c", "read -P 7 0 4k", plain)
    assert "reloaded" in run(program, "reload", config)
    old.kill()
    audited = (workdir / "audit").read_text()
    assert '"event": "write"' in audited

    new = serving()
    assert run("nbdinfo", "--size", secure) == f"{1 << 20}\n"
    run("qemu-io", "-f", "raw", "-c", "read -P 7 0 4k", plain)
    run(program, "status", "--config", config)
    assert new.stop() == 0, new.output
    lines = (workdir / "audit").read_text()
    assert lines.startswith(audited)
    assert '"event": "opened"' in lines.removeprefix(audited)

    # All that its template has: whatever is commented out with one "#" is an example.
    full = workdir / "full.toml"
    full.write_text(re.sub(r"(?m)^#(?=[a-z\[])", "", template.read_text()))
    run(program, "check", "--offline", full)
    pip = (sys.executable, "-m", "pip", "--python", program.with_name("python"))
    run(*pip, "uninstall", "--yes", "nbd-gateway")
    assert {each: each.read_bytes() for each in written} == written
    assert disk.read_bytes()[:4096] == bytes([7]) * 4096
