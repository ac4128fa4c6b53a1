"""The image in a container engine, as the page of containers has it."""

from __future__ import annotations

import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.walkthrough import run as walk

from .engine import Engine, engine
from .roots import TOP

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def docker(built: str) -> Iterator[Engine]:
    # A Unix socket's path has 107 bytes.
    with tempfile.TemporaryDirectory(prefix="engine-") as name, engine(Path(name), built) as made:
        yield made


PLUGIN = """#!/bin/sh
if [ "$1" = docker-cli-plugin-metadata ]; then
    echo '{"SchemaVersion": "0.1.0", "Vendor": "Debian", "Version": "1"}'
else
    shift
    exec docker-compose "$@"
fi
"""
"""`docker compose`, where it is a program of its own, as in Debian."""


def test_the_page_is_true(docker: Engine, tmp_path: Path) -> None:
    shutil.copytree(TOP / "deploy", tmp_path / "deploy")
    # A machine whose own limit is lower can give no container more.
    compose = tmp_path / "deploy/container/compose.yaml"
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = min(65536, hard)
    compose.write_text(compose.read_text().replace("nofile: 65536", f"nofile: {files}"))
    plugin = tmp_path / ".docker/cli-plugins/docker-compose"
    plugin.parent.mkdir(parents=True)
    plugin.write_text(PLUGIN)
    plugin.chmod(0o755)
    page = (TOP / "docs/howto/containers.md").read_text()
    walk(page, tmp_path, docker.typed, own_ports=True)
