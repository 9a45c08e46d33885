"""Scalars of YAML 1.2, a line for every value, and each kind of broken text as one line."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.config.problems import SourceLocation
from grpo.config.yaml_positions import read_yaml, write_yaml

START = SourceLocation("r.yaml", 1)


def data_of(text: str) -> Any:
    tree, problems = read_yaml(text, START)
    assert tree is not None and problems == []
    return tree.plain()


def problems_of(text: str) -> list[str]:
    return [str(problem) for problem in read_yaml(text, START)[1]]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),  # YAML 1.1 reads the text '1e-6'
        ("3E5", 3e5),
        (".5", 0.5),
        ("-2.", -2.0),
        (".inf", float("inf")),
        ("10_000", 10000),
        ("010", 10),  # YAML 1.1: 8
        ("1:30", "1:30"),  # YAML 1.1: 90
        ("true", True),
        ("False", False),
        ("no", "no"),  # a language
        ("on", "on"),
        ("y", "y"),
        ("~", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("1.2.3", "1.2.3"),
        ("'12'", "12"),
        ("!!str 12", "12"),
        ("[1, {a: b}]", [1, {"a": "b"}]),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    assert data_of(f"key: {text}") == {"key": value}
    assert type(data_of(f"key: {text}")["key"]) is type(value)


def test_every_value_knows_the_line_of_its_key_or_item() -> None:
    tree, _ = read_yaml("a: 1\nb:\n  c: 2\n  d:\n  - x\n  -\n    e: |\n      text\n", START)
    assert tree is not None
    lines = {keys: node.location.line for keys, node in tree.walk()}
    assert lines == {("a",): 1, ("b",): 2, ("b", "c"): 3, ("b", "d"): 4, ("b", "d", 0): 5, ("b", "d", 1): 7, ("b", "d", 1, "e"): 7}


def test_aliases_and_merge_keys_work_and_a_mappings_own_keys_win() -> None:
    assert data_of("a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}\nc: {<<: [{p: 9}, *x]}\nd: *x") == {
        "a": {"p": 1, "q": 2},
        "b": {"p": 1, "q": 3},
        "c": {"p": 9, "q": 2},
        "d": {"p": 1, "q": 2},
    }


def test_a_key_written_twice_is_named_with_both_lines() -> None:
    assert problems_of("a: 1\nb: {c: 1, c: 2}\na: 2\n") == [
        "r.yaml:2: key 'c' is written twice in one mapping (first on line 2); keep one",
        "r.yaml:3: key 'a' is written twice in one mapping (first on line 1); keep one",
    ]


def test_all_indenting_tabs_are_named() -> None:
    assert problems_of("a:\n\tb: 1\nc:\n  \td: 2\n") == [
        "r.yaml:2: a tab; YAML is indented with spaces only",
        "r.yaml:4: a tab; YAML is indented with spaces only",
    ]


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system [ls]", "!!python/name:os.system", "!mine x", "!!binary aGk="])
def test_tags_that_would_make_objects_are_refused(tag: str) -> None:
    (problem,) = problems_of(f"a: 1\nb: {tag}\n")
    assert problem.startswith("r.yaml:2: YAML tag ") and "is refused: a recipe is plain data" in problem


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", 3, "expected ',' or ']'"),
        ("a: 1\n  b: 2\n", 2, "a value that holds ': ' needs quotes"),
        ("a: 1\nb\nc: 2\n", 3, "every key is followed by ': '"),
        ("a: 'x\n", 2, "quoted scalar"),
        ("a: *x\n", 1, "undefined alias 'x'"),
        ("a: 1\n---\na: 2\n", 2, "a second document begins here"),
        ("a: 1\nb: \x07\n", 2, "character '\\x07' is not allowed"),
        ("? [1]\n: 2\n", 1, "a key is a list or a mapping"),
        ("a: &x [*x]\n", 1, "this alias refers to a node that contains it"),
        ("a: {<<: 3}\n", 1, "'<<' takes a mapping"),
        ("a: !!int x\n", 1, "'x' is not a number"),
        ("[" * 700, 1, "nested too deeply"),
    ],
)
def test_a_broken_text_is_one_line_with_its_place(text: str, line: int, words: str) -> None:
    (problem,) = problems_of(text)
    assert problem.startswith(f"r.yaml:{line}: ") and words in problem and "\n" not in problem


def test_aliases_that_unfold_without_end_are_stopped() -> None:
    levels = "\n".join(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 9))
    (problem,) = problems_of(f"a0: &a0 [x]\n{levels}")
    assert "expand to more than" in problem


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from(["1e-6", "no", "~", "0x1f"])
)
plain_data = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=8
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=5), plain_data, max_size=3))
def test_what_is_written_reads_back_the_same_here_and_in_yaml_1_1(data: dict[str, Any]) -> None:
    tree, problems = read_yaml(write_yaml(data), START)
    assert problems == [] and tree is not None and tree.plain() == data
    assert yaml.safe_load(write_yaml(data)) == data
