import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.lines import KeyPath, TextLines, statement_at_end

TEXT = '''\
# a comment = "and nothing else"
top = 1

dotted.key.deep = 2
"quoted.key" = 3
'single "quoted"' = 4

[table]
inline = { a = 1, b = { c = [1, 2] } }
list = [
  "one",   # [not.a.header]
  "two = 2",
  { x = 1 },
]
text = """
[not.a.header]
fake = 1
"""
after = true

[[array]]
name = "first"

[array.sub]
key = 1

[[array]]   # with a comment
name = "second"
[array.sub]
key = 2
[[array.inner]]
deep = 1
[[array.inner]]
deep = 2

[ "a.b" . c ]
d = \'\'\'
x = \'\'\'
e = 1'''

CASES: list[tuple[KeyPath, int]] = [
    ((), 1),
    (("top",), 2),
    (("dotted",), 4),
    (("dotted", "key", "deep"), 4),
    (("quoted.key",), 5),
    (('single "quoted"',), 6),
    (("table",), 8),
    (("table", "inline"), 9),
    (("table", "inline", "b", "c", 1), 9),
    (("table", "list"), 10),
    (("table", "list", 2, "x"), 10),
    (("table", "text"), 15),
    (("table", "after"), 19),
    (("array",), 21),
    (("array", 0), 21),
    (("array", 0, "name"), 22),
    (("array", 0, "sub"), 24),
    (("array", 0, "sub", "key"), 25),
    (("array", 1), 27),
    (("array", 1, "name"), 28),
    (("array", 1, "sub", "key"), 30),
    (("array", 1, "inner", 0, "deep"), 32),
    (("array", 1, "inner", 1), 33),
    (("array", 1, "inner", 1, "deep"), 34),
    (("a.b", "c"), 36),
    (("a.b", "c", "d"), 37),
    (("a.b", "c", "e"), 39),
    # not there: the innermost table that could have it
    (("missing",), 1),
    (("table", "missing"), 8),
    (("array", 1, "missing"), 27),
    (("array", 9, "missing"), 21),
    (("array", 1, "name", "missing"), 28),
]


@pytest.mark.parametrize(("path", "line"), CASES)
def test_line_of(path: KeyPath, line: int) -> None:
    assert TextLines(TEXT)[path] == line


@pytest.mark.parametrize(("path", "line"), CASES)
def test_line_of_with_carriage_returns(path: KeyPath, line: int) -> None:
    assert TextLines(TEXT.replace("\n", "\r\n"))[path] == line


def test_no_other_line_ends_than_toml_has() -> None:
    assert TextLines('a = "\u2028\x85"\nb = 1\n')[("b",)] == 2


def test_empty() -> None:
    assert TextLines("")[("x",)] == 1


@pytest.mark.parametrize(
    ("text", "line"),
    [("a = 1\nb = [\n1,\n2,\n", 2), ('a = 1\n\nb = """\nc = 1\n', 3), ("a = 1\n[b\n", 2)],
)
def test_unfinished_statement(text: str, line: int) -> None:
    assert statement_at_end(text) == line


def test_each_dotted_key_has_a_line_of_its_own() -> None:
    lines = TextLines("a.b.c = 1\na.b.d = 2\n")
    assert (lines["a", "b"], lines["a", "b", "c"], lines["a", "b", "d"]) == (1, 1, 2)


def test_a_list_of_many_lines_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """To read it anew with each of its lines took a minute for 8,000 of them."""
    read: list[str] = []
    loads = tomllib.loads

    def counted(text: str) -> dict[str, Any]:
        read.append(text)
        return loads(text)

    monkeypatch.setattr(tomllib, "loads", counted)
    text = "a = 1\nlist = [\n" + "  1,\n" * 1000 + "]\nb = 2\n"
    assert TextLines(text)[("b",)] == 1004
    assert sum(map(len, read)) <= 2 * len(text)
    read.clear()
    assert statement_at_end(text + "[\n" + "1,\n" * 1000) == 1005
    assert sum(map(len, read)) <= 2 * len(text)


bare = st.from_regex("[a-z]{1,3}", fullmatch=True)
values = st.sampled_from(
    [
        *("1", '"x"', '"""\ny\n"""', "[\n1,\n[2]\n]", "{ p = 1 }", "'''\n[q]\n'''"),
        # Brackets, quotes and ends of lines that mean nothing where they stand.
        *(
            '"[#"',
            "'{\"'",
            '"\\"["',
            "[ # ]\n]",
            '1 # [ """',
            '"""\n]"\\"""[\n"""""',
            "'''\n''[\n'''''",
        ),
    ]
)
sections = st.lists(st.tuples(bare, st.dictionaries(bare, values, max_size=4)), max_size=5)


@given(sections)
def test_every_key_stands_where_it_was_written(sections: list[tuple[str, dict[str, str]]]) -> None:
    text = ""
    expected: dict[KeyPath, int] = {}
    counts: dict[str, int] = {}
    for name, keys in sections:
        index = counts[name] = counts.get(name, -1) + 1
        expected[name, index] = text.count("\n") + 1
        text += f"[[{name}]]\n"
        for key, value in keys.items():
            text += "# x\n"
            expected[name, index, key] = text.count("\n") + 1
            text += f"{key} = {value}\n"
    lines = TextLines(text)
    for path, line in expected.items():
        assert lines[path] == line
        assert _lookup(tomllib.loads(text), path) is not None


def _lookup(data: Any, path: KeyPath) -> object:
    for key in path:
        data = data[key]
    return data
