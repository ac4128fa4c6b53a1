"""Each file in examples/ says in its first lines what it wants to be there, and starts if it is."""

from __future__ import annotations

import grp
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.cli.vocabulary import vocabulary
from gateway.config import Config, load
from gateway.uri import NbdUri

pytestmark = pytest.mark.real

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.toml"))
SECONDS = 60
ALWAYS_THERE = ("0.0.0.0", "[::]", "::", "127.0.0.1")
NAMES = [path.stem for path in EXAMPLES]


def head(path: Path) -> str:
    """The comment that a file begins with, in one line."""
    lines = re.match(r"(#.*\n)+", path.read_text())
    assert lines, path
    return lines[0].replace("\n# ", " ")


def wanted(config: Config) -> Iterator[str]:
    """What a configuration needs that is not on every machine."""
    for listen in config.listen:
        uri = listen.uri
        yield from (str(path) for path in (listen.certificates, listen.psk) if path)
        if listen.socket_owner:
            yield from (
                each for each in (listen.socket_owner.user, listen.socket_owner.group) if each
            )
        yield from places(uri, listens=True)
    for upstream in config.upstream.values():
        if upstream.command:
            yield upstream.command[0]
            yield upstream.command[-1]
        elif isinstance(upstream.uri, NbdUri):
            yield from places(upstream.uri, listens=False)
    for rule in config.rule:
        for policy in rule.policies:
            if file := policy.options.get("file"):
                yield str(Path(str(file)).parent)


def places(uri: NbdUri, *, listens: bool) -> Iterator[str]:
    if uri.socket_path is not None:
        yield str(Path(uri.socket_path).parent) if listens else uri.socket_path
    elif uri.cid is not None:
        yield "vsock"
    elif uri.host not in ALWAYS_THERE:
        yield str(uri.host)


@pytest.mark.parametrize("path", EXAMPLES, ids=NAMES)
def test_it_says_what_it_wants(path: Path) -> None:
    said = head(path)
    assert " Wants: " in said
    missing = [each for each in wanted(load(path, vocabulary())) if each not in said]
    assert not missing


@pytest.mark.parametrize("path", EXAMPLES, ids=NAMES)
def test_it_starts_with_what_it_wants(path: Path, workdir: Path) -> None:
    """What it wants is put elsewhere, and other ports are taken; but for those that start as they stand,
    nothing is given that the file does not name.
    """
    text = path.read_text()
    listeners = r'(\[\[listen\]\]\n(?:#.*\n)*uri = )"(nbds?)(?:\+vsock)?://[^"/]*"'
    text = re.sub(listeners, r'\1"\2://127.0.0.1:0"', text)
    if "starts as it stands" not in head(path):
        text = prepared(text, workdir)
    file = workdir / path.name
    file.write_text(text)
    command = [sys.executable, "-m", "gateway", "serve", "--config", str(file)]
    gateway = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert gateway.stderr is not None
        said = ""
        while said.count("listening") < text.count("[[listen]]"):
            line = gateway.stderr.readline()
            assert line, said
            said += line
        gateway.send_signal(signal.SIGTERM)
        gateway.communicate(timeout=SECONDS)
        assert gateway.returncode == 0
    finally:
        if gateway.poll() is None:
            gateway.kill()
        gateway.communicate(timeout=SECONDS)


def prepared(text: str, workdir: Path) -> str:
    """Provide what an example wants, and have it look there."""
    if "/etc/pki/nbd" in text:
        pki = workdir / "pki"
        init = [sys.executable, "-m", "gateway", "pki", "init", str(pki), "--psk", "backup-1"]
        subprocess.run(init, check=True, capture_output=True, timeout=SECONDS)
        text = text.replace("/etc/pki/nbd", str(pki))
    if sys.version_info < (3, 13):  # as the file says
        text = re.sub(r"(?m)^psk = .*\n", "", text).replace('psk-user = "backup-*", ', "")
    for folder in ("/run/nbd-gateway", "/var/log/nbd-gateway", "/run"):
        ours = workdir / folder.strip("/").replace("/", "-")
        ours.mkdir(exist_ok=True)
        text = text.replace(f"{folder}/", f"{ours}/")
    return text.replace(":kvm", f":{grp.getgrgid(os.getgid()).gr_name}")
