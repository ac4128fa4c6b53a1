"""Every call that logs, as the source says it: its event, its level, and which fields it gives.

A call of a method that is named like a level logs, whatever it is a method of. Its event is a text, or a name
for one or two texts. Some functions log what they are given, so their calls log as well: `HANDS` has them.

This module is longer than other modules, for it reads one thing in all the ways in which it is written.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

TOP = Path(__file__).parents[2]

LEVELS = {
    "debug": "debug",
    "info": "info",
    "warning": "warning",
    "error": "error",
    "exception": "error",
}
"""Of each method of a logger."""

STRANGERS = {"warn", "critical", "fatal", "msg", "log"}
"""Methods of a logger that nobody uses here."""

A_LOG = re.compile(r"(^|[._])log$|get_logger\(\)$")
"""What has a logger, as it is written."""


class Function(NamedTuple):
    file: str
    name: str
    """With its classes and functions around it."""


class Hands(NamedTuple):
    """A function that logs an event which it is given. What it gives beside is given at each of its calls."""

    files: str
    """Where it is called: a pattern for the file."""
    call: str
    """How it is called: a pattern for what stands before the parenthesis."""
    event: int | str
    """Which argument is the event."""
    level: int | None = None
    """Which one is the level. None: it has one of its own."""
    details: int | None = None
    """Which one is a dict of fields. None: fields are keywords."""


HANDS = {
    Function("gateway/net/command.py", "Command._say"): Hands(
        "gateway/net/command.py", r"self\._say", 1, level=0
    ),
    Function("gateway/sessions/service.py", "Service._losses_of.say"): Hands(
        "gateway/losses/.*", r"self\._say", 0, details=1
    ),
    Function("gateway/links/trunk.py", "Trunk._say"): Hands(
        "gateway/links/making.py|gateway/bundle/work.py", r"self\._say", 0, details=1
    ),
    Function("gateway/bundle/work.py", "Work.say"): Hands(
        "gateway/bundle/.*", r"(self\.)?work\.say|self\.say", 0
    ),
    Function("gateway/bundle/recovery.py", "_say_what_waits"): Hands(
        "gateway/bundle/recovery.py", "_say_what_waits", 1
    ),
    Function("gateway/sessions/pausing.py", "Pauses._end_now"): Hands(
        "gateway/sessions/pausing.py", r"self\._end_now", "resumed"
    ),
    Function("gateway/log/__init__.py", "_line"): Hands("gateway/log/.*", "_line", 0),
}

WITHOUT_A_LOGGER = {Function("gateway/log/__init__.py", "_line"): ("warning",)}
"""Those that make the line themselves, and its level."""

FEWER = "one connection instead of {wanted}: {why}"

SENTENCES = {
    Function("gateway/links/making.py", "Making.say_why_fewer"): FEWER,
    Function("gateway/links/shared.py", "Trunks.uplink"): FEWER,
}
"""Functions whose event is a sentence that is put together elsewhere, and the event that it is."""

ELSEWHERE = {
    "uplink.connections": Function("gateway/links/uplink.py", "Share.connections"),
}
"""What gives fields, and is in another file than the call."""

BOUND = {
    r"gateway/links/trunk\.py:.*:self\._log": {"upstream"},
    r"gateway/clients/.*": {"session", "client", "via"},
    r"gateway/fleet/led\.py:WayHome.*": {"session"},
    r"gateway/app/arrivals\.py:Arrivals\._client:log": {"session", "client", "via"},
    r"gateway/sessions/.*:(running\.log|log|self\._log)": {"session", "client", "via", "export"},
    r"gateway/status/.*:running\.log": {"session", "client", "via", "export"},
}
"""What a logger is bound to, by the file, the function and the name that it has there."""

MAYBE_BOUND = {
    r"gateway/links/trunk\.py:.*:self\._log": {"session", "client", "via", "export"},
}
"""What some of these are bound to beside: the trunk of a session that lives on has the session's logger."""

BINDS = {
    "gateway/app/run.py": {"worker"},
    "gateway/clients/client.py": {"session", "client", "via"},
    "gateway/clients/negotiating.py": {"export"},
    "gateway/fleet/led.py": {"session"},
    "gateway/links/trunk.py": {"upstream"},
}
"""The fields that loggers are bound to, by the file in which that is done."""


@dataclass
class Site:
    """A place that logs."""

    function: Function
    line: int
    events: tuple[str, ...] | None
    """Each of them may come. None: it is given to the function."""
    levels: tuple[str, ...]
    fields: set[str]
    bound: set[str]
    maybe: set[str] = field(default_factory=set)
    """What only some of its lines have."""

    def __str__(self) -> str:
        return f"{self.function.file}:{self.line}"


@dataclass
class Found:
    sites: list[Site] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Calls of which it cannot be said what they log."""
    binds: dict[str, set[str]] = field(default_factory=dict)
    handing: set[Function] = field(default_factory=set)
    """Those that log what they are given."""


class NotSaid(Exception):
    """The source does not say it in a way that is understood here."""


def found_in(texts: Mapping[str, str]) -> Found:
    """What these files log, by their paths and texts."""
    trees = {path: ast.parse(text) for path, text in texts.items()}
    functions = {
        each: node for path, tree in trees.items() for each, node in _functions(path, tree)
    }
    search = _Search(functions)
    for function, node in functions.items():
        search.look_at(function, node)
    search.look_at_handed()
    return search.found


def sources(top: Path = TOP) -> dict[str, str]:
    files = [*(top / "gateway").rglob("*.py"), *(top / "policies").rglob("*.py")]
    return {str(file.relative_to(top)): file.read_text() for file in sorted(files)}


Node = ast.Module | ast.FunctionDef | ast.AsyncFunctionDef


def _functions(path: str, tree: ast.Module) -> Iterator[tuple[Function, Node]]:
    yield Function(path, ""), tree

    def within(node: ast.AST, name: str) -> Iterator[tuple[Function, Node]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = f"{name}.{child.name}" if name else child.name
                if not isinstance(child, ast.ClassDef):
                    yield Function(path, inner), child
                yield from within(child, inner)
            elif not isinstance(child, ast.expr):  # in which there is none but a lambda
                yield from within(child, name)

    yield from within(tree, "")


def _own(function: Node) -> Iterator[ast.AST]:
    """What is in a function, without the functions in it. Lambdas are part of it."""
    inner = (ast.FunctionDef, ast.AsyncFunctionDef)
    left = _children(function)
    while left:
        node = left.pop()
        if not isinstance(node, inner):
            yield node
            left += _children(node)


def _children(node: ast.AST) -> list[ast.AST]:
    """As `ast.iter_child_nodes` has them, in half of the time: all of our source is walked through here."""
    found: list[ast.AST] = []
    for value in vars(node).values():
        if isinstance(value, list):
            found += [each for each in value if isinstance(each, ast.AST)]
        elif isinstance(value, ast.AST) and not isinstance(value, ast.expr_context):
            found.append(value)
    return found


class _Search:
    def __init__(self, functions: Mapping[Function, Node]) -> None:
        self._functions = functions
        self.found = Found()
        self._given = {
            each: Site(each, 0, None, levels, set(), set())
            for each, levels in WITHOUT_A_LOGGER.items()
            if each in functions
        }
        self._handed: list[tuple[Function, Node, ast.Call, Function]] = []

    def look_at(self, function: Function, node: Node) -> None:
        called = set()
        own = list(_own(node))
        aliases = dict(_aliases(own))
        for each in own:
            if isinstance(each, ast.Call):
                called.add(id(each.func))
                self._look_at_call(function, node, each, aliases)
        aliased = {id(each) for methods in aliases.values() for each in methods}
        for each in own:
            if isinstance(each, ast.Attribute) and each.attr in LEVELS.keys() | STRANGERS:
                is_log = A_LOG.search(ast.unparse(each.value))
                if is_log and id(each) not in called | aliased:
                    self._cannot_say(function, each, "a method of a logger is handed on")

    def _look_at_call(
        self,
        function: Function,
        node: Node,
        call: ast.Call,
        aliases: Mapping[str, list[ast.Attribute]],
    ) -> None:
        what = _as_written(call.func)
        methods: list[ast.Attribute] = []
        if isinstance(call.func, ast.Attribute):
            if call.func.attr == "bind":
                given = {each.arg for each in call.keywords if each.arg is not None}
                if given:  # else it is a socket's
                    self.found.binds.setdefault(function.file, set()).update(given)
            if call.func.attr in LEVELS:
                methods = [call.func]
            elif call.func.attr in STRANGERS and A_LOG.search(ast.unparse(call.func.value)):
                self._cannot_say(function, call, f"{call.func.attr} is no level here")
        elif isinstance(call.func, ast.Name):
            methods = aliases.get(call.func.id, [])
        elif what.startswith("getattr("):
            receiver = what.removeprefix("getattr(").partition(",")[0]
            if A_LOG.search(receiver):
                self._add(function, node, call, call.args[0], call.keywords, (), receiver)
        if methods:
            levels = tuple(LEVELS[each.attr] for each in methods)
            traceback = {"exception"} if methods[0].attr == "exception" else set()
            receiver = ast.unparse(methods[0].value)
            event = call.args[0]
            self._add(function, node, call, event, call.keywords, levels, receiver, traceback)
        for handing, hands in HANDS.items():
            if re.fullmatch(hands.files, function.file) and re.fullmatch(hands.call, what):
                self._handed.append((function, node, call, handing))

    def look_at_handed(self) -> None:
        """Look at calls of functions that log what they are given. Some of these call others of them."""
        for _ in HANDS:
            for function, node, call, handing in list(self._handed):
                if handing not in self._given:
                    continue
                self._handed.remove((function, node, call, handing))
                self._look_at_handed(function, node, call, handing)
        for function, _node, call, handing in self._handed:
            self._cannot_say(function, call, f"{handing.name} logs nothing")
        self.found.handing = {*self._given}

    def _look_at_handed(
        self, function: Function, node: Node, call: ast.Call, handing: Function
    ) -> None:
        hands, body = HANDS[handing], self._given[handing]
        levels, keywords = body.levels, list(call.keywords)
        if isinstance(hands.event, str):
            [event] = [each.value for each in keywords if each.arg == hands.event]
            keywords = [each for each in keywords if each.arg != hands.event]
        else:
            event = call.args[hands.event]
        if hands.level is not None:
            try:
                levels = _texts(call.args[hands.level], node)
            except NotSaid as error:
                self._cannot_say(function, call, str(error))
        if hands.details is not None:
            keywords.append(ast.keyword(None, call.args[hands.details]))
        self._add(
            function, node, call, event, keywords, levels, "", body.fields, body.bound, body.maybe
        )

    def _add(
        self,
        function: Function,
        node: Node,
        call: ast.Call,
        event: ast.expr,
        keywords: Iterable[ast.keyword],
        levels: tuple[str, ...],
        receiver: str,
        beside: Iterable[str] = (),
        bound: Iterable[str] = (),
        maybe: Iterable[str] = (),
    ) -> None:
        site = Site(function, call.lineno, None, levels, {*beside}, {*bound}, {*maybe})
        where = f"{function.file}:{function.name}:{receiver}"
        for pattern, names in BOUND.items():
            if receiver and re.fullmatch(pattern, where):
                site.bound |= names
        for pattern, names in MAYBE_BOUND.items():
            if receiver and re.fullmatch(pattern, where):
                site.maybe |= names
        try:
            site.fields |= self._keys(keywords, function, node)
            if function in SENTENCES:
                site.events = (SENTENCES[function],)
            elif function in HANDS:
                site.events = None
            else:
                site.events = _texts(event, node)
        except NotSaid as error:
            self._cannot_say(function, call, str(error))
            return
        if site.events is None:
            self._given[function] = site
        else:
            self.found.sites.append(site)

    # --- Fields

    def _keys(self, keywords: Iterable[ast.keyword], function: Function, node: Node) -> set[str]:
        found = set()
        for each in keywords:
            if each.arg is None:
                found |= self._keys_of(each.value, function, node)
            else:
                found.add("exception" if each.arg == "exc_info" else each.arg)
        return found

    def _keys_of(self, value: ast.expr, function: Function, node: Node) -> set[str]:
        """The keys of a dict."""
        match value:
            case ast.Dict():
                found = set()
                for key, inner in zip(value.keys, value.values, strict=True):
                    if key is None:
                        found |= self._keys_of(inner, function, node)
                    elif isinstance(key, ast.Constant):
                        found.add(str(key.value))
                    else:
                        raise NotSaid(f"a field is named {ast.unparse(key)}")
                return found
            case ast.IfExp():
                return self._keys_of(value.body, function, node) | self._keys_of(
                    value.orelse, function, node
                )
            case ast.Call(func=ast.Name(id="dict"), args=[inner], keywords=[]):
                return self._keys_of(inner, function, node)
            case ast.Call(func=ast.Name(id=name)):
                return self._keys_returned(Function(function.file, name))
            case ast.Attribute() if ast.unparse(value) in ELSEWHERE:
                return self._keys_returned(ELSEWHERE[ast.unparse(value)])
            case ast.Name(id=name):
                return self._keys_of_name(name, function, node)
            case _:
                raise NotSaid(f"fields come from {ast.unparse(value)}")

    def _keys_of_name(self, name: str, function: Function, node: Node) -> set[str]:
        if function in HANDS and name in _parameters(node):
            return set()  # whoever calls it gives them
        found, said = set(), False
        for each in _own(node):
            targets: list[ast.expr] = []
            value: ast.expr | None = None
            if isinstance(each, ast.Assign):
                targets, value = each.targets, each.value
            elif isinstance(each, ast.AnnAssign | ast.AugAssign):
                targets, value = [each.target], each.value
            for target in targets:
                if isinstance(target, ast.Name) and target.id == name and value is not None:
                    found |= self._keys_of(value, function, node)
                    said = True
                if isinstance(target, ast.Subscript) and ast.unparse(target.value) == name:
                    [key] = _texts(target.slice, node)
                    found.add(key)
        if not said:
            raise NotSaid(f"fields come from {name}")
        return found

    def _keys_returned(self, function: Function) -> set[str]:
        node = self._functions.get(function)
        if node is None:
            raise NotSaid(f"fields come from {function.name}")
        values = [each.value for each in _own(node) if isinstance(each, ast.Return)]
        found = set()
        for value in values:
            if value is not None:
                found |= self._keys_of(value, function, node)
        return found

    def _cannot_say(self, function: Function, node: ast.expr, why: str) -> None:
        self.found.problems.append(f"{function.file}:{node.lineno}: {why}")


def _as_written(node: ast.expr) -> str:
    """As `ast.unparse` has it, which takes a hundred times as long for the short ones."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=ast.Name(id=name), attr=attribute):
            return f"{name}.{attribute}"
    return ast.unparse(node)


def _parameters(node: Node) -> set[str]:
    if isinstance(node, ast.Module):
        return set()
    given = node.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    rest = [each for each in (given.vararg, given.kwarg) if each is not None]
    return {each.arg for each in (*every, *rest)}


def _aliases(own: Iterable[ast.AST]) -> Iterator[tuple[str, list[ast.Attribute]]]:
    """Names for methods of a logger: `say = log.warning if bad else log.info`."""
    for each in own:
        if isinstance(each, ast.Assign) and isinstance(each.targets[0], ast.Name):
            value = each.value
            parts = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
            methods = [part for part in parts if isinstance(part, ast.Attribute)]
            if len(methods) == len(parts) and all(
                part.attr in LEVELS and A_LOG.search(ast.unparse(part.value)) for part in methods
            ):
                yield each.targets[0].id, methods


def _texts(value: ast.expr, node: Node) -> tuple[str, ...]:
    """The texts that it may be."""
    match value:
        case ast.Constant(value=str(text)):
            return (text,)
        case ast.IfExp():
            return _texts(value.body, node) + _texts(value.orelse, node)
        case ast.Name(id=name):
            values = [
                each.value
                for each in _own(node)
                if isinstance(each, ast.Assign)
                and any(isinstance(to, ast.Name) and to.id == name for to in each.targets)
            ]
            if values:
                return tuple(text for each in values for text in _texts(each, node))
    raise NotSaid(f"what is {ast.unparse(value)}?")
