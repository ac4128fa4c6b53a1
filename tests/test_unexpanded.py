"""Who writes ~ into a configuration is told that nobody expands it, wherever a path may stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config import parse
from gateway.inspect.needs import lacking
from gateway.net.dial import DialError, dial
from gateway.there import unexpanded
from gateway.uri import parse_nbd_uri
from policies.audit import Audit
from tests.policies.harness import configured

SAID = "; ~ is not expanded here: write the path in full"

UPSTREAM = '[upstream.a]\nuri = "memory:1M"\n'

PLACES = {
    "certificates": f'[[listen]]\nuri = "nbds://h"\ncertificates = "~/pki"\n{UPSTREAM}',
    "keys": f'[[listen]]\nuri = "nbds://h"\npsk = "~joe/keys.psk"\n{UPSTREAM}',
    "a listener's socket": f'[[listen]]\nuri = "nbd+unix:///?socket=~/s"\n{UPSTREAM}',
    "the control socket": f'[[listen]]\nuri = "nbd://h"\n{UPSTREAM}[control]\nsocket = "~/s"\n',
    "a disk": '[[listen]]\nuri = "nbd://h"\n[upstream.a]\nuri = "file:~/disk.img"\n',
    "a program": '[[listen]]\nuri = "nbd://h"\n[upstream.a]\ncommand = ["~/bin/nbdkit", "null"]\n',
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("place", PLACES)
def test_it_is_said_where_something_is_lacking(place: str) -> None:
    [(_at, why)] = lacking(parse(PLACES[place], "f"))
    assert why.endswith(SAID)


def test_of_an_audit_file_as_well() -> None:
    [why] = configured(Audit, {"file": "~/audit.log"}).lacks()
    assert why == f"there is no directory ~{SAID}"


async def test_and_of_a_server() -> None:
    with pytest.raises(DialError) as failed:
        await dial(parse_nbd_uri("nbd+unix:///?socket=~/s"))
    assert str(failed.value).endswith(f"No such file or directory{SAID}")


def test_not_of_others(tmp_path: Path) -> None:
    for path in ("", "pki", "/~/pki", "a~/b", Path()):
        assert unexpanded(path) == ""
    assert unexpanded("~") == unexpanded(Path("~joe/pki")) == SAID
    (tmp_path / "~").mkdir()
    assert unexpanded("~/pki") == ""
