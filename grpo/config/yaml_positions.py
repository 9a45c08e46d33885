"""Reads YAML with the line of every value. It accepts plain data only, with the scalars of YAML 1.2.

PyYAML reads YAML 1.1, in which 1e-6 is a string and ``no`` is a boolean. Here 1e-6 is a number, only true and false are booleans, dates
stay text, and tags that would create objects are refused. Merge keys (``<<``) and aliases work.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import yaml

from grpo.config.problems import Finding, Keys, Problem, SourceLocation, dotted

MAX_VALUES = 20_000  # a recipe has some hundreds; aliases that expand to more are an attack or an accident

DIGITS = r"[0-9]+(?:_[0-9]+)*"
NOT_FINITE = r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", rf"[-+]?{DIGITS}", list("-+0123456789")),
    ("float", rf"[-+]?(?:\.{DIGITS}|{DIGITS}(?:\.(?:{DIGITS})?)?)(?:[eE][-+]?[0-9]+)?|{NOT_FINITE}", list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
)
TAG = "tag:yaml.org,2002:"
HINTS = {
    "cannot start any token": "is a value that begins with @, ` or % in quotes?",
    "mapping values are not allowed here": "a value that holds ': ' needs quotes, and keys of one mapping begin in one column",
    "could not find expected ':'": "every key is followed by ': '",
    "but found '<block mapping start>'": "keys of one mapping begin in one column",
}


@dataclass(frozen=True)
class Node:
    """A value and its location, the line of its key or list item. ``removes``: a null that overrides an earlier layer's value."""

    value: dict[str, Node] | list[Node] | str | int | float | bool | None
    location: SourceLocation
    removes: bool = False

    def plain(self) -> Any:
        """Return the value as ordinary dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        return [node.plain() for node in self.value] if isinstance(self.value, list) else self.value

    def get(self, key: str | int) -> Node | None:
        """Return the node at a key or an index, or None."""
        if isinstance(self.value, dict):
            return self.value.get(str(key))
        return self.value[key] if isinstance(self.value, list) and isinstance(key, int) and 0 <= key < len(self.value) else None

    def nearest(self, keys: Keys) -> Node:
        """Return the node at ``keys``, or the last node on the way that exists."""
        below = self.get(keys[0]) if keys else None
        return below.nearest(keys[1:]) if below else self

    def put(self, keys: Keys, node: Node | None) -> Node:
        """Return a copy with ``node`` at ``keys``, or with nothing there if it is None. All keys but the last must exist."""
        key, rest = keys[0], keys[1:]
        child = self.get(key)
        assert child or not rest, keys
        changed = child.put(rest, node) if rest and child else node
        if isinstance(self.value, list):
            items = [changed if index == key else item for index, item in enumerate(self.value)]
            return Node([item for item in items if item], self.location)
        assert isinstance(self.value, dict)
        return Node({name: item for name, item in {**self.value, str(key): changed}.items() if item}, self.location)

    def renamed(self, keys: Keys, name: str) -> Node:
        """Return a copy in which the last of ``keys`` is renamed to ``name``."""
        parent = self.nearest(keys[:-1])
        assert isinstance(parent.value, dict)
        renamed = Node({name if key == keys[-1] else key: node for key, node in parent.value.items()}, parent.location)
        return self.put(keys[:-1], renamed) if keys[:-1] else renamed

    def walk(self, keys: Keys = ()) -> Iterator[tuple[Keys, Node]]:
        """Yield every node below this one, with the keys that lead to it."""
        below = self.value.items() if isinstance(self.value, dict) else enumerate(self.value) if isinstance(self.value, list) else ()
        for key, node in below:
            yield (*keys, key), node
            yield from node.walk((*keys, key))


def locate(finding: Finding, tree: Node, data: Any) -> Problem:
    """Return the finding with its location. ``data`` is the tree as plain data, which has the names of the stages."""
    location = tree.nearest(finding.keys).location
    where = f"{dotted(finding.keys, data)}: " if location.line and finding.keys else ""
    return Problem(location, f"{where}{finding.text}")


def node_of(data: Any, location: SourceLocation) -> Node:
    """Return plain data as a tree whose nodes all have one location."""
    if isinstance(data, dict):
        return Node({str(key): node_of(value, location) for key, value in data.items()}, location)
    return Node([node_of(item, location) for item in data], location) if isinstance(data, list) else Node(data, location)


def read_yaml(text: str, location: SourceLocation) -> tuple[Node | None, list[Problem]]:
    """Return the text as a tree, and what is wrong with it. ``location`` is its first line, or the override whose value it is (line 0)."""
    loader = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None, []
        reader = _Reader(location)
        return reader.node(root, reader.location_of(root)), reader.problems
    except yaml.MarkedYAMLError as error:
        return None, _syntax_problems(text, location, error)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        return None, [Problem(_line(location, line), f"not a YAML text: character {chr(error.character)!r} is not allowed; delete it")]
    except RecursionError:
        return None, [Problem(location, "lists or mappings nested too deeply to read")]
    finally:
        if loader:
            loader.dispose()


def write_yaml(data: Any) -> str:
    """Return plain data as YAML that ``read_yaml`` and every YAML 1.1 or 1.2 reader read as the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=140)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]


class _Dumper(yaml.SafeDumper):
    """Quotes text that either version of YAML would read as something else."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {key: [*known] for key, known in yaml.SafeDumper.yaml_implicit_resolvers.items()}  # type: ignore[misc]

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, text: str) -> yaml.Node:
    """Write line breaks and other invisible characters as escapes, because PyYAML's folding would change some of them."""
    return dumper.represent_scalar(f"{TAG}str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _text)
for _name, _pattern, _first in SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(TAG + _name, re.compile(f"(?:{_pattern})$"), _first)


class _Reader:
    """Turns PyYAML's nodes into ours and collects the problems."""

    def __init__(self, location: SourceLocation):
        self.start = location
        self.problems: list[Problem] = []
        self.open: set[int] = set()
        self.num_values = 0

    def location_of(self, node: yaml.Node) -> SourceLocation:
        return _line(self.start, node.start_mark.line + 1)

    def node(self, node: yaml.Node, location: SourceLocation) -> Node:
        self.num_values += 1
        tag = node.tag.removeprefix(TAG)
        if tag not in ("str", "seq", "map", *(name for name, _, _ in SCALARS)):
            return self._refused(node, location, f"YAML tag {_short(node.tag)!r} is refused: a recipe is plain data; remove the tag")
        if id(node) in self.open:
            return self._refused(node, location, "this alias refers to a node that contains it; write out the value")
        if self.num_values > MAX_VALUES:
            if self.num_values == MAX_VALUES + 1:
                return self._refused(node, location, f"the aliases expand to more than {MAX_VALUES} values; write fewer")
            return Node(None, location)
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return Node(self._mapping(node), location)
            if isinstance(node, yaml.SequenceNode):
                return Node([self.node(item, self.location_of(item)) for item in node.value], location)
            assert isinstance(node, yaml.ScalarNode), "YAML has three kinds of node"
            return self._scalar(node, tag, location)
        finally:
            self.open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Node]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key_node, value_node in node.value:
            location = self.location_of(key_node)
            value = self.node(value_node, location)
            if not isinstance(key_node, yaml.ScalarNode):
                self._refused(key_node, location, "a key is a list or a mapping; if it is a value, put it in quotes")
            elif key_node.tag == f"{TAG}merge":
                for source in value.value if isinstance(value.value, list) else [value]:
                    if isinstance(source.value, dict):
                        merged = {**source.value, **merged}
                    else:
                        self._refused(value_node, location, "'<<' takes a mapping, or a list of mappings")
            elif key_node.value in own:
                first = own[key_node.value].location
                where = f" (first on line {first.line})" if first.line else ""
                self._refused(key_node, location, f"key {key_node.value!r} is written twice in one mapping{where}; keep one")
            else:
                own[key_node.value] = value
        return {**merged, **own}

    def _scalar(self, node: yaml.ScalarNode, tag: str, location: SourceLocation) -> Node:
        text = node.value.replace("_", "").lower()
        try:
            if tag == "int":
                return Node(int(text), location)
            if tag == "float":
                return Node(float(text.replace(".inf", "inf").replace(".nan", "nan")), location)
        except ValueError:
            return self._refused(node, location, f"{_short(node.value)!r} is not a number that can be read")
        return Node({"null": None, "bool": text == "true"}.get(tag, node.value), location)

    def _refused(self, node: yaml.Node, location: SourceLocation, text: str) -> Node:
        self.problems.append(Problem(location, text))
        return Node(None, location)


def _line(start: SourceLocation, line: int) -> SourceLocation:
    return SourceLocation(start.file, line) if start.line else start


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _syntax_problems(text: str, location: SourceLocation, error: yaml.MarkedYAMLError) -> list[Problem]:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    what = str(error.problem or error.context)
    if "'\\t'" in what:
        tabs = [number for number, content in enumerate(text.split("\n"), start=1) if re.match(r" *\t", content)]
        return [Problem(_line(location, number), "a tab; YAML is indented with spaces only") for number in tabs or [line]]
    if "but found another document" in what:
        return [Problem(_line(location, line), "a second document begins here (---); a recipe is one")]
    if error.context and error.context_mark and error.context_mark.line + 1 != line and location.line:
        what += f" {error.context} that begins on line {error.context_mark.line + 1}"
    hint = next((hint for words, hint in HINTS.items() if words in what), "")
    return [Problem(_line(location, line), f"not YAML: {what}{f'; {hint}' if hint else ''}")]
