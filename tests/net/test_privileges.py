"""Becoming somebody else, by programs of their own: there is no way back."""

from __future__ import annotations

import grp
import json
import os
import pwd
import subprocess
from pathlib import Path

import pytest

from gateway.net import privileges
from gateway.net.privileges import CannotBecome, become, somebody, why_not
from tests.tools.patience import HANG_SECONDS

ROOT = os.geteuid() == 0
NOBODY = pwd.getpwnam("nobody")
DISK = grp.getgrnam("disk").gr_gid

SHOWS = """
import json, os, sys, threading
sys.path.insert(0, sys.argv[1])
import privileges
begun, done, said = threading.Event(), threading.Event(), []
def other():
    begun.set()
    done.wait()
    said.append(open(f"/proc/thread-self/status").read().split("Uid:")[1].split()[:4])
thread = threading.Thread(target=other)
thread.start()
begun.wait()
try:
    privileges.become(*json.loads(sys.argv[2]), None)
except privileges.CannotBecome as error:
    print(json.dumps(str(error)))
    sys.exit(1)
finally:
    done.set()
    thread.join()
try:
    os.setuid(0)
except PermissionError:
    back = False
else:
    back = os.geteuid() == 0
status = open("/proc/self/status").read()
print(json.dumps({
    "uids": os.getresuid(), "gids": os.getresgid(), "groups": sorted(os.getgroups()), "back": back,
    "capabilities": int(status.split("CapPrm:")[1].split()[0], 16), "thread": said[0],
}))
"""


def became(user: str | None, group: str | None, tmp_path: Path) -> dict[str, object] | str:
    """What has become of a process. (By the system's Python: that of the tests may be root's alone.)"""
    (tmp_path / "privileges.py").write_text(Path(privileges.__file__).read_text())
    done = subprocess.run(
        ["/usr/bin/python3", "-c", SHOWS, str(tmp_path), json.dumps([user, group])],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
        cwd="/",
    )
    assert done.stdout, done.stderr
    found: dict[str, object] | str = json.loads(done.stdout)
    return found


@pytest.fixture
def readable(workdir: Path) -> Path:
    workdir.chmod(0o755)
    return workdir


def test_who_becomes_somebody_else_is_that_in_all_threads_and_for_good(readable: Path) -> None:
    found = became("nobody", None, readable)
    if not ROOT:
        assert found == f"only root can become user nobody, and this is user {os.geteuid()}"
        return
    assert isinstance(found, dict)
    assert found["uids"] == [NOBODY.pw_uid] * 3
    assert found["gids"] == [NOBODY.pw_gid] * 3
    assert found["groups"] == [NOBODY.pw_gid]
    assert found["thread"] == [str(NOBODY.pw_uid)] * 4
    assert (found["back"], found["capabilities"]) == (False, 0)


def test_a_group_stands_in_for_the_users_own_or_comes_alone(readable: Path) -> None:
    both, alone = became("nobody", "disk", readable), became(None, "disk", readable)
    if not ROOT:
        assert isinstance(both, str)
        return
    assert isinstance(both, dict)
    assert isinstance(alone, dict)
    assert (both["uids"], both["gids"]) == ([NOBODY.pw_uid] * 3, [DISK] * 3)
    assert (alone["uids"], alone["gids"], alone["groups"]) == ([0] * 3, [DISK] * 3, [DISK])


def test_who_could_load_nothing_more_does_not_begin_to_serve(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    found = became("nobody", None, tmp_path)
    if ROOT:
        assert found == (
            f"user nobody cannot read {tmp_path}/privileges.py, and would have to load more"
        )


def test_who_it_is_already_needs_no_right() -> None:
    me = pwd.getpwuid(os.geteuid()).pw_name
    assert somebody(None, None).is_me
    become(None, None, None)
    assert list(why_not(None, None)) == []
    assert somebody(me, None).uid == os.geteuid()


@pytest.mark.parametrize(
    ("user", "group", "says"),
    [
        ("nobody-of-that-name", None, 'there is no user "nobody-of-that-name"'),
        ("nobody", "nobody-of-that-name", 'there is no group "nobody-of-that-name"'),
        ("no\0body", None, "there is no user"),
        ("", None, 'there is no user ""'),
    ],
)
def test_who_is_not_there_is_named(user: str, group: str | None, says: str) -> None:
    with pytest.raises(CannotBecome, match=says):
        become(user, group, None)
    [(key, why)] = why_not(user, group)
    assert (key, why) == ("user" if group is None else "group", why)
