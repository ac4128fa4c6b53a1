"""The file of tokens, and what is wrong with one."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.tls.errors import CredentialsError
from gateway.web.doors import Role
from gateway.web.tokens import LEAST_TOKEN_CHARACTERS, load_tokens

A, B = "a" * LEAST_TOKEN_CHARACTERS, "b" * 64


def written(path: Path, text: str | bytes, mode: int = 0o600) -> Path:
    file = path / "tokens"
    file.touch(mode)
    file.chmod(mode)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_a_file(tmp_path: Path) -> None:
    tokens = load_tokens(written(tmp_path, f"# one\n\nlook prom {A}\n full ops@x {B}\n"))
    assert len(tokens) == 2
    for shown, name, role in ((A, "prom", Role.LOOK), (B, "ops@x", Role.FULL)):
        found = tokens.find(shown)
        assert found is not None
        assert (found.name, found.role) == (name, role)
    for shown in ("", A[:-1], A + "a", "\udcff", "prom"):
        assert tokens.find(shown) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has 0 tokens"),
        ("# only words\n", "has 0 tokens"),
        (f"look prom {A} {B}\n", "line 1: expected lines of"),
        (f"\nlook {A}\n", "line 2: expected lines of"),
        (f"admin prom {A}\n", "line 1: expected lines of"),
        (f"look pr/om {A}\n", "line 1: a name has letters"),
        ('look prom "' + A + '"\n', "line 1: a token has letters"),
        (f"look prom {A[1:]}\n", "line 1: expected a token of 20 characters or more"),
        (f"look prom {A}\nfull prom {B}\n", "line 2: prom has a token already"),
        (f"look prom {A}\nfull ops {A}\n", "two names have one token"),
        (b"look prom \xff" + A.encode(), "is not UTF-8"),
    ],
)
def test_what_is_wrong(tmp_path: Path, text: str | bytes, says: str) -> None:
    with pytest.raises(CredentialsError) as caught:
        load_tokens(written(tmp_path, text))
    assert says in str(caught.value)
    assert A not in str(caught.value)
    assert A[1:] not in str(caught.value)


def test_others_may_not_read_it(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match="others than its owner"):
        load_tokens(written(tmp_path, f"look prom {A}\n", 0o644))
