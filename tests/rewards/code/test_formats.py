"""Tests of code as rows and public data sets hold them, and those that are refused with what to write."""

from __future__ import annotations

from typing import Any

import pytest

from rewards import RewardError
from rewards.code.formats import Call, Pair, read_tests, setups_in


@pytest.mark.parametrize(
    ("tests", "read"),
    [
        ('["assert f(1)", "assert f(2)"]', ["assert f(1)", "assert f(2)"]),
        ('[{"stdin": 1, "stdout": "2"}]', [Pair("1", "2")]),
        ("assert f(1)", ["assert f(1)"]),
        (" ", []),
        (None, []),
        ({"stdin": ["3", 4], "stdout": ["7"]}, [Pair("3\n4\n", "7\n")]),
        ('{"inputs": ["1\\n", ["3", "4"]], "outputs": ["2\\n", ["7"]]}', [Pair("1\n", "2\n"), Pair("3\n4\n", "7\n")]),  # TACO
        ([{"input": "1", "output": "2", "testtype": "stdin"}], [Pair("1", "2")]),
        (['{"input": "1", "output": "2"}'], [Pair("1", "2")]),
        ({"test_cases": [{"type": "stdin_stdout", "fn_name": None, "input": "1", "output": "2"}]}, [Pair("1", "2")]),
        ({"fn_name": "f", "inputs": [[19]], "outputs": [[1]]}, [Call("f", [19], [1])]),  # APPS
        ([{"fn_name": "f", "input": '[1, 2]\n"a"', "output": "true"}], [Call("f", [[1, 2], "a"], True)]),
        ([{"fn_name": "f", "input": "a = [1], b = 'x'", "output": "None"}], [Call("f", {"a": [1], "b": "x"}, None)]),
        ([{"fn_name": "f", "input": ["1"], "output": "1"}], [Call("f", ["1"], "1")]),  # what is data already is not read again
    ],
)
def test_tests_of_public_data_sets_are_read(tests: Any, read: list[Any]) -> None:
    assert read_tests(tests) == read


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        (["assert f(1", "assert f(2)"], "column 'tests', test 0: 'assert f\\(1' is no Python"),
        ([{"given": "1", "wanted": "2"}], "test 0: expected statements, .* found the keys \\['given', 'wanted'\\]"),
        (["assert f(1)", {"stdin": "", "stdout": ""}], "all alike"),
        ([3], "found 3"),
        (3, "found 3"),
        ("3", "found 3"),
        ([{"stdin": {"a": 1}, "stdout": ""}], "test 0, stdin: expected text, or a list of lines; found {'a': 1}"),
        ([{"stdin": "", "stdout": None}], "test 0, stdout: expected text, or a list of lines; found None"),
        ([{"stdin": "", "stdout": True}], "found True"),
        ({"inputs": [[[2, 7], 9]], "outputs": [[0, 1]]}, "input: expected text, .* add its name as fn_name"),
        ({"inputs": ["1", "2"], "outputs": ["1"]}, "inputs and outputs must be lists of one length"),
        ([{"input": "[1]", "output": "1", "testtype": "functional"}], "it calls a function and does not say which"),
        (
            [{"input": "nums = [3,3], target = 6", "output": "[0, 1]"}],
            "is keyword arguments, which no program reads \\(LeetCode\\); add .* fn_name",
        ),
        ([{"fn_name": "f", "input": "x y", "output": "1"}], "'x y' is neither JSON nor a plain Python value"),
        ([{"fn_name": "f", "input": "a = g()", "output": "1"}], "'a = g\\(\\)' are no plain arguments by name"),
        ({"fn_name": "f(1)", "inputs": [[1]], "outputs": [1]}, "fn_name must be the name of a function"),
        (["def check(candidate):\n    assert candidate(1) == 1"], "tests nothing: .* such as check\\(name\\)"),
        ([""], "tests nothing"),
    ],
)
def test_tests_that_cannot_be_read_are_an_error(tests: Any, said: str) -> None:
    with pytest.raises(RewardError, match=said):
        read_tests(tests)


def test_setups_are_what_cannot_fail() -> None:
    setups = [
        "import math",
        "x = f()",
        "def g():\n    assert x",
        "class A:\n    y: int = 1",
        "'why'",
        "try:\n    import a\nexcept ImportError:\n    a = None",
    ]
    tests = [
        "g()",
        "x = 1\nassert x",
        "for y in x:\n    assert y",
        "with a:\n    g()",
        "try:\n    x\nfinally:\n    raise x",
        "match x:\n    case 1: g()",
    ]
    assert setups_in([*setups, *tests]) == list(range(len(setups)))
