"""Makes what is handed to users, and tries it as they would: `python packaging/dist.py DIRECTORY`.

The sdist is made of this tree, and all else of the sdist, so that what it lacks is seen here. Each thing is
installed in an environment that has nothing but Python, runs there, and is removed again: a wheel with the
compiled pump, a wheel for any machine, and the sdist where no compiler is. Packages that it depends on come
from pip's index.

    nbd_gateway-V.tar.gz           the same bytes for the same commit, wherever and whenever it is made
    nbd_gateway-V-cp313-...whl     with the compiled pump, for this Python and kind of machine
    nbd_gateway-V-py3-none-any.whl without it, for all
    nbd-gateway-V.cdx.json         what is in an installation (CycloneDX)
    SHA256SUMS                     of them all
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

TOP = Path(__file__).resolve().parents[1]
NO_COMPILER = {"CC": "/no/compiler/here"}
NO_PUMP = {"NBD_GATEWAY_PUMP": "0"}
SHARED = (
    "man/man1/nbd-gateway.1",
    "man/man1/nbd-gateway-serve.1",
    "man/man5/nbd-gateway.toml.5",
    "bash-completion/completions/nbd-gateway",
    "zsh/site-functions/_cyclopts_nbd-gateway",
    "fish/vendor_completions.d/nbd-gateway.fish",
)
MISUSE = 2
DATA_AT_RISK = 3


class Failed(Exception):
    """Something of it does not work; the text says what."""


def main(arguments: list[str]) -> int:
    """Make and try all of it; give the exit status."""
    if len(arguments) != 1:
        print("usage: python packaging/dist.py DIRECTORY", file=sys.stderr)
        return MISUSE
    dist = Path(arguments[0]).resolve()
    dist.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory() as there:
            make(dist, Path(there))
    except (Failed, OSError) as error:
        print(f"dist: {error}", file=sys.stderr)
        return 1
    return 0


def make(dist: Path, there: Path) -> None:
    """Fill a directory, with another one to work in. Raises `Failed`."""
    sdist = make_sdist(dist)
    name = sdist.name.removesuffix(".tar.gz")
    for old in dist.glob(f"{name}-*.whl"):
        old.unlink()
    with tarfile.open(sdist) as archive:
        archive.extractall(there, filter="data")
    compiled = make_wheel(there / name, dist, {})
    if "py3-none-any" in compiled.name:
        raise Failed(f"{compiled.name} has no compiled pump: is a compiler there, and Python.h?")
    pure = make_wheel(there / name, dist, NO_PUMP)

    try_it("the wheel with the pump", compiled, there / "compiled", pump=True)
    try_it("the sdist, without a compiler", sdist, there / "source", NO_COMPILER, pump=False)
    try_it("the wheel for any machine", pure, there / "pure", pump=False)
    sbom = dist / f"{name.replace('_', '-')}.cdx.json"
    python = clean(there / "sbom")
    run(python, "-m", "pip", "install", "--quiet", pure)
    run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "pip")
    made = [sdist, compiled, pure, make_sbom(python, sbom)]
    sums = "".join(
        f"{sha256(each.read_bytes()).hexdigest()}  {each.name}\n" for each in sorted(made)
    )
    (dist / "SHA256SUMS").write_text(sums)
    print(sums, end="")


def make_sdist(dist: Path) -> Path:
    """Make the sdist of this tree."""
    with TemporaryDirectory(dir=dist) as there:
        build = ("-m", "hatchling", "build", "--target", "sdist", "--directory", there)
        run(sys.executable, *build, cwd=TOP)
        [made] = Path(there).iterdir()
        return made.rename(dist / made.name)


def make_wheel(source: Path, dist: Path, environment: Mapping[str, str]) -> Path:
    """Make a wheel of an unpacked sdist, as pip does."""
    before = set(dist.iterdir())
    command = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", dist, source)
    run(sys.executable, *command, environment=environment)
    [made] = set(dist.iterdir()) - before
    return made


def try_it(
    what: str,
    archive: Path,
    there: Path,
    environment: Mapping[str, str] | None = None,
    *,
    pump: bool,
) -> None:
    """Install it where nothing is, run it, and remove it. Raises `Failed`."""
    python = clean(there)
    empty = files(there)
    run(python, "-m", "pip", "install", "--quiet", archive, environment=environment)
    program = python.with_name("nbd-gateway")

    version = run(program, "--version")
    with_pump = "with" if pump else "without"
    expect(f" {with_pump} the compiled pump" in version, f"{what}: --version says {version!r}")
    expect("(build " in version, f"{what}: --version does not know its build: {version!r}")
    for shared in SHARED:
        expect((there / "share" / shared).is_file(), f"{what}: share/{shared} is not installed")
    asked = f"{program} probe $uri --transmit"
    run(program, "serve", "memory:1M", "--run", asked, cwd=there)
    run(program, "probe", "legacy:qemu-3.0", cwd=there, status=DATA_AT_RISK)
    run(program, "init", "gateway.toml", cwd=there)
    run(program, "check", "gateway.toml", cwd=there)
    (there / "gateway.toml").unlink()

    run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "nbd-gateway")
    left = {each for each in files(there) - empty if is_ours(each)}
    expect(not left, f"{what}: removed, and these are left: {sorted(map(str, left))}")
    print(f"{what}: {version.strip()}")


def make_sbom(python: Path, sbom: Path) -> Path:
    """Say what an interpreter finds, which has nothing but an installation."""
    tool = Path(sys.executable).with_name("cyclonedx-py")
    run(
        *(tool, "environment", "--output-reproducible", "--mc-type", "application"),
        *("--pyproject", TOP / "pyproject.toml", "--output-file", sbom, python),
    )
    return sbom


def clean(there: Path) -> Path:
    """Make an environment that has nothing but Python and pip; give its interpreter."""
    venv.create(there, with_pip=True, symlinks=True)
    return there / "bin" / "python"


def files(there: Path) -> set[Path]:
    """All files below a directory, by their names there."""
    return {each.relative_to(there) for each in there.rglob("*") if not each.is_dir()}


def is_ours(file: Path) -> bool:
    """Say whether a file is of this program, and not of a package that it depends on."""
    parts = set(file.parts)
    return bool(parts & {"gateway", "policies"}) or any("nbd" in each for each in parts)


def expect(holds: bool, otherwise: str) -> None:
    """Raise `Failed` if something does not hold."""
    if not holds:
        raise Failed(otherwise)


def run(
    *command: str | Path,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    status: int = 0,
) -> str:
    """Run a program to which this repository is unknown; give what it prints. Raises `Failed`."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**ours, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != status:
        line = " ".join(map(str, command))
        raise Failed(f"{line} ended with status {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
