"""Debians as their installer leaves them, with Python and the programs that tutorials use, and nothing of ours.

One of each suite is made once, by tests/tools/debian-root, below the user's cache directory; each test has a
copy of its own. What is run in it has a loopback of its own and no other network: packages come from files that
were fetched before.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.tools.patience import HANG_SECONDS
from tests.walkthrough import AS_TYPED, said_by

TOP = Path(__file__).parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nbd-gateway"

PYTHONS = {"bookworm": 11, "trixie": 13}
"""Debian 12 and 13, and the minor versions of their Pythons."""

PACKAGES = (
    *("python3", "python3-venv", "adduser", "make", "git", "ca-certificates"),
    *("systemd", "procps", "file"),
    *("qemu-utils", "nbdkit", "libnbd-bin"),
)

# Mounts, and a loopback of its own, are gone with the process that has made them.
ENTER = """
root=$1; shift
ip link set lo up
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
exec chroot "$root" "$@"
"""


@dataclass(frozen=True)
class Root:
    """A Debian in a directory."""

    path: Path

    def run(self, *command: str, status: int = 0, **environment: str) -> str:
        """Run a program of it, as root; give what it prints on both streams."""
        done = subprocess.run(
            self.inside(command),
            env=_environment(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=HANG_SECONDS,
            check=False,
        )
        assert done.returncode == status, f"{command}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def typed_in(self, path: str) -> _Typed:
        """Give who types pages in it, with these programs before all others."""
        return _Typed(self, path)

    def inside(self, command: tuple[str, ...]) -> list[str]:
        return ["unshare", "--mount", "--net", "sh", "-ec", ENTER, "sh", str(self.path), *command]

    def files(self) -> set[str]:
        """All that is in it, but for what dpkg and the system note down for themselves."""
        return {
            name
            for each in self.path.rglob("*")
            if not (name := str(each.relative_to(self.path))).startswith(NOTES)
        }


NOTES = (
    *("proc/", "dev/", "sys/", "run/", "tmp/", "root/", "var/lib/dpkg/", "var/log/", "var/cache/"),
    *(
        "etc/passwd",
        "etc/group",
        "etc/shadow",
        "etc/gshadow",
        "etc/subuid",
        "etc/subgid",
        "etc/.pwd",
    ),
)


@dataclass(frozen=True)
class _Typed:
    root: Root
    path: str

    def __call__(self, script: str, there: Path) -> str:
        inside = f"/{there.relative_to(self.root.path)}"
        environment = _environment({"PATH": f"{self.path}:{PATH}", "HOME": inside, **AS_TYPED})
        command = ("bash", "--norc", "-c", f"cd {inside}\n{script}")
        return said_by(self.root.inside(command), there, environment)


PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def _environment(more: dict[str, str]) -> dict[str, str]:
    return {
        "PATH": PATH,
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
        "DEBIAN_FRONTEND": "noninteractive",
        **more,
    }


def fresh(suite: str, there: Path) -> Root:
    """Give a Debian of one's own in a directory."""
    clean = CACHE / f"clean-{suite}"
    subprocess.run([TOP / "tests/tools/debian-root", suite, clean, *PACKAGES], check=True)
    path = there / suite
    subprocess.run(["cp", "--archive", "--reflink=auto", clean, path], check=True)
    # The installer writes it; debootstrap alone does not.
    (path / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    return Root(path)


def interpreter(minor: int) -> str:
    """Give a Python of this machine's that packages can be made with. Raises AssertionError."""
    name = f"python3.{minor}"
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    candidates = [f"/usr/bin/{name}", *map(str, sorted(pyenv.glob(f"3.{minor}.*/bin/{name}")))]
    for candidate in (*candidates, shutil.which(name) or ""):
        probe = [candidate, "-c", "import ssl"]
        if (
            candidate
            and Path(candidate).exists()
            and subprocess.run(probe, check=False).returncode == 0
        ):
            return candidate
    raise AssertionError(
        f"the package for Debian's {name} is made with a {name}, and there is none here"
    )
