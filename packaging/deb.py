"""Makes a Debian package: `python packaging/deb.py DIRECTORY [INTERPRETER]`.

Debian has too old versions of some packages that the program depends on, so they come with it, all in
/usr/lib/nbd-gateway: nothing goes into dist-packages, where it would be in the way of others. Some of them
are compiled, so the package is for one minor version of Python, that of INTERPRETER: /usr/bin/python3 of the
Debian that it is made for (`Depends:` says so). The files of the package itself are in packaging/debian.

It is made with dpkg-deb alone. The same commit, with the same versions of the packages, gives the same bytes.
"""

from __future__ import annotations

import gzip
import os
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from dist import MISUSE, TOP, Failed, expect, make_sbom, run

DEBIAN = TOP / "packaging" / "debian"
INTERPRETER = "/usr/bin/python3"
MODULES = "usr/lib/nbd-gateway"
DOC = "usr/share/doc/nbd-gateway"

SHELLS = {
    "zsh/site-functions": "zsh/vendor-completions",
}
"""Where Debian has it elsewhere, below share/."""

WHAT_PIP_SAYS = ("direct_url.json", "INSTALLER", "REQUESTED")
"""Files of a *.dist-info that say how and where it was installed."""

LONG_AGO = 1580601600
"""The time of all files, unless SOURCE_DATE_EPOCH says another: that of hatchling's archives."""

CONTROL = """\
Package: nbd-gateway
Version: {version}+py3{minor}
Architecture: {architecture}
Maintainer: the authors of nbd-gateway <nbd-gateway@localhost>
Section: net
Priority: optional
Installed-Size: {kib}
Depends: python3 (>= 3.{minor}), python3 (<< 3.{next}), adduser, procps, libc6 (>= 2.34)
Suggests: qemu-utils, nbdkit, libnbd-bin
Description: gateway between NBD clients and NBD servers
 Speaks the NBD protocol on both sides, so that each side gets the dialect that it
 knows: mends what old servers get wrong, ends TLS, lets in whom rules allow, and
 keeps clients connected while their server is restarted or exchanged.
"""


def main(arguments: list[str]) -> int:
    """Make it; give the exit status."""
    if len(arguments) not in (1, 2):
        print("usage: python packaging/deb.py DIRECTORY [INTERPRETER]", file=sys.stderr)
        return MISUSE
    directory = Path(arguments[0]).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory() as there:
            print(make(directory, Path(there), (arguments[1:] or [INTERPRETER])[0]))
    except (Failed, OSError) as error:
        print(f"deb: {error}", file=sys.stderr)
        return 1
    return 0


def make(directory: Path, there: Path, python: str) -> Path:
    """Make it for an interpreter, with a directory to work in; give the package. Raises `Failed`."""
    wheels = there / "wheels"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, TOP)
    [wheel] = wheels.iterdir()
    root = there / "root"
    modules = root / MODULES
    run(*pip, "install", "--quiet", "--no-compile", "--target", modules, wheel)
    (root / DOC).mkdir(parents=True)
    make_sbom(with_modules(there, python, modules), root / DOC / "nbd-gateway.cdx.json")
    arrange(root)
    shutil.copyfile(DEBIAN / "copyright", root / DOC / "copyright")
    compress(TOP / "CHANGELOG.md", root / DOC / "changelog.gz")

    version = wheel.name.split("-")[1]
    minor = int(run(python, "-c", "import sys; print(sys.version_info[1])"))
    architecture = run("dpkg", "--print-architecture").strip()
    write_control(root, version, architecture, minor)
    settle(root)
    package = directory / f"nbd-gateway_{version}+py3{minor}_{architecture}.deb"
    build = ("dpkg-deb", "--build", "--root-owner-group", "-Zxz", root, package)
    run(*build, environment={"SOURCE_DATE_EPOCH": str(epoch())})
    return package


def with_modules(there: Path, python: str, modules: Path) -> Path:
    """Give an interpreter that finds these modules, and no packages of the machine's."""
    script = there / "python"
    script.write_text(f"#!/bin/sh\nPYTHONPATH='{modules}' exec '{python}' -S \"$@\"\n")
    script.chmod(0o755)
    return script


def arrange(root: Path) -> None:
    """Put what pip has installed into one folder where Debian looks for each thing."""
    modules = root / MODULES
    for each in (modules / "share").iterdir():
        for file in sorted(each.rglob("*")):
            if file.is_file():
                name = str(file.relative_to(modules / "share"))
                for ours, debians in SHELLS.items():
                    name = name.replace(ours, debians)
                target = root / "usr/share" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if name.startswith("man/"):
                    compress(file, target.with_name(f"{target.name}.gz"))
                else:
                    shutil.move(file, target)
    for unused in ("share", "bin"):
        shutil.rmtree(modules / unused, ignore_errors=True)
    for information in modules.glob("*.dist-info"):
        for name in WHAT_PIP_SAYS:
            (information / name).unlink(missing_ok=True)
        # It lists files that are elsewhere now; dpkg knows better.
        (information / "RECORD").unlink(missing_ok=True)

    program = root / "usr/bin/nbd-gateway"
    program.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(DEBIAN / "nbd-gateway", program)
    program.chmod(0o755)
    unit = root / "lib/systemd/system/nbd-gateway.service"
    unit.parent.mkdir(parents=True)
    unit.write_text(run(sys.executable, "-c", UNIT, str(DEBIAN / "widest.toml"), cwd=TOP))
    configuration = root / "etc/nbd-gateway/gateway.toml"
    configuration.parent.mkdir(parents=True)
    configuration.write_text(run(sys.executable, "-c", TEMPLATE, cwd=TOP))


UNIT = """
import sys
from pathlib import Path
from gateway.cli.vocabulary import vocabulary
from gateway.config import load
from gateway.inspect.unit import Installation, service_unit

config = Path("/etc/nbd-gateway/gateway.toml")
here = Installation(("/usr/bin/nbd-gateway",), config, "nbd-gateway", "nbd-gateway", 252)
print(service_unit(load(Path(sys.argv[1]), vocabulary()), here), end="")
"""
"""For Debian 12's systemd, whose units that of Debian 13 takes as well."""

TEMPLATE = "from gateway.config.template import TEMPLATE; print(TEMPLATE, end='')"


def write_control(root: Path, version: str, architecture: str, minor: int) -> None:
    """Write what dpkg wants to know."""
    kib = sum(each.stat().st_size for each in root.rglob("*") if each.is_file()) // 1024
    directory = root / "DEBIAN"
    directory.mkdir()
    (directory / "control").write_text(
        CONTROL.format(
            version=version, architecture=architecture, kib=kib, minor=minor, next=minor + 1
        )
    )
    (directory / "conffiles").write_text("/etc/nbd-gateway/gateway.toml\n")
    for script in ("postinst", "prerm", "postrm"):
        shutil.copyfile(DEBIAN / script, directory / script)
        (directory / script).chmod(0o755)


def settle(root: Path) -> None:
    """Give all files the permissions and the time that do not depend on who makes them."""
    caches = list(root.rglob("__pycache__"))
    expect(not caches, f"compiled files where none should be: {caches}")
    for each in (root, *root.rglob("*")):
        if not each.is_symlink():
            is_program = each.is_dir() or each.stat().st_mode & 0o100
            each.chmod(0o755 if is_program else 0o644)
        os.utime(each, (epoch(), epoch()), follow_symlinks=False)


def epoch() -> int:
    """Give the time of all files."""
    return int(os.environ.get("SOURCE_DATE_EPOCH", LONG_AGO))


def compress(source: Path, target: Path) -> None:
    """Write a file compressed, without its name and its time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(gzip.compress(source.read_bytes(), mtime=0))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
