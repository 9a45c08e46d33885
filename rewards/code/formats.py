"""Which tests does a row hold? Statements, pairs of input and output of a program, or calls of a function; however data sets write them."""

from __future__ import annotations

import ast
import json
import keyword
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rewards.errors import RewardError

KEYWORDS = re.compile(r"\s*[A-Za-z_]\w* = \S")
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
FORMATS = 'statements, {"stdin", "stdout"}, {"input", "output"}, or {"inputs": [...], "outputs": [...]} with or without "fn_name"'


class Pair(NamedTuple):
    """What a program is given, and what it must print."""

    stdin: str
    stdout: str


class Call(NamedTuple):
    """A function of the answer, or a method of its class Solution, what it is called with, and what it must return."""

    function: str
    arguments: Sequence[Any] | Mapping[str, Any]
    output: Any


def read_tests(tests: Any) -> list[str] | list[Pair] | list[Call]:
    """The tests of a row, all of one kind. Raises RewardError for what is none, is no Python, or tests nothing."""
    found = _listed(tests)
    if found and all(isinstance(test, str) for test in found):
        return _statements(found)
    read = [_of_mapping(test, number) for number, test in enumerate(found) if isinstance(test, Mapping)]
    if len(read) < len(found) or len({type(test) for test in read}) > 1:
        odd = next((test for test in found if not isinstance(test, Mapping)), found[0])
        raise RewardError(f"column 'tests': expected {FORMATS}, and all alike; found {odd!r:.80}")
    if read and all(isinstance(test, Pair) and KEYWORDS.match(test.stdin) for test in read):
        raise RewardError(
            f"column 'tests': {read[0][0]!r:.80} is keyword arguments, which no program reads (LeetCode); "
            "add the function's name as fn_name, or write statements such as assert Solution().name(...) == ..."
        )
    return read  # type: ignore[return-value]


def setups_in(tests: Sequence[str]) -> list[int]:
    """The numbers of those statements that test nothing: they import, define or assign what the tests after them use."""
    return [number for number, test in enumerate(tests) if not any(_can_fail(node) for node in _executed(ast.parse(test).body))]


def _listed(tests: Any) -> list[Any]:
    """Tests as a list, whether they came as JSON, as lists beside each other, or as a single one."""
    if isinstance(tests, str):
        try:
            tests = json.loads(tests)
        except ValueError:
            return [tests] if tests.strip() else []
    if isinstance(tests, Mapping) and "test_cases" in tests:
        tests = tests["test_cases"]
    if isinstance(tests, Mapping) and {"inputs", "outputs"} <= tests.keys():
        return _side_by_side(tests)
    if isinstance(tests, str | Mapping):
        return [tests]
    if not isinstance(tests, Sequence | None) and not hasattr(tests, "__array__"):
        raise RewardError(f"column 'tests': expected {FORMATS}; found {tests!r:.80}")
    found = list(() if tests is None else tests)
    if found and all(isinstance(test, str) and test.lstrip().startswith("{") for test in found):
        try:
            return [json.loads(test) for test in found]
        except ValueError:
            pass  # statements, if strange ones
    return found


def _side_by_side(tests: Mapping[str, Any]) -> list[dict[str, Any]]:
    """APPS and TACO: a list of inputs, and one of outputs."""
    inputs, outputs = tests["inputs"], tests["outputs"]
    if isinstance(inputs, str) or isinstance(outputs, str) or len(inputs) != len(outputs):
        raise RewardError(f"column 'tests': inputs and outputs must be lists of one length; found {inputs!r:.40} and {outputs!r:.40}")
    named = {"fn_name": tests["fn_name"]} if tests.get("fn_name") else {}
    return [{**named, "input": given, "output": wanted} for given, wanted in zip(inputs, outputs, strict=True)]


def _of_mapping(test: Mapping[str, Any], number: int) -> Pair | Call:
    at = f"column 'tests', test {number}"
    given, wanted = next((pair for pair in (("stdin", "stdout"), ("input", "output")) if {*pair} <= test.keys()), (None, None))
    if given is None or wanted is None:
        raise RewardError(f"{at}: expected {FORMATS}; found the keys {sorted(map(str, test))}")
    if test.get("fn_name"):
        return _call(test["fn_name"], test[given], test[wanted], at)
    if "function" in str(test.get("type", test.get("testtype", ""))):
        raise RewardError(f"{at}: it calls a function and does not say which; add its name as fn_name")
    return Pair(_text(test[given], f"{at}, {given}"), _text(test[wanted], f"{at}, {wanted}"))


def _text(value: Any, at: str) -> str:
    """Text as it is, a number as it is written, a list of them as lines."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, Sequence) and all(isinstance(line, str | int | float) and not isinstance(line, bool) for line in value):
        return "".join(f"{line}\n" for line in value)
    raise RewardError(f"{at}: expected text, or a list of lines; found {value!r:.80}. Where a function is called, add its name as fn_name")


def _call(function: Any, arguments: Any, output: Any, at: str) -> Call:
    if not isinstance(function, str) or not function.isidentifier() or keyword.iskeyword(function):
        raise RewardError(f"{at}: fn_name must be the name of a function, or of a method of Solution; found {function!r:.80}")
    if isinstance(arguments, str):
        arguments, output = _arguments(arguments, at), _literal(output, at) if isinstance(output, str) else output
    if not isinstance(arguments, Sequence | Mapping):
        raise RewardError(f"{at}: expected a list of arguments, or an object of them by name; found {arguments!r:.80}")
    return Call(function, arguments, output)


def _arguments(text: str, at: str) -> list[Any] | dict[str, Any]:
    """LiveCodeBench writes an argument a line, LeetCode ``nums = [3, 3], target = 6``."""
    if KEYWORDS.match(text):
        try:
            (call,) = (node for node in ast.walk(ast.parse(f"f({text.strip()})", mode="eval")) if isinstance(node, ast.Call))
            return {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
        except (SyntaxError, ValueError):
            raise RewardError(f"{at}: {text!r:.80} are no plain arguments by name; write a list, or an object of them by name") from None
    return [_literal(line, at) for line in text.splitlines() if line.strip()]


def _literal(text: str, at: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return ast.literal_eval(text.strip())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise RewardError(f"{at}: {text!r:.80} is neither JSON nor a plain Python value; write it as one") from None


def _statements(tests: list[str]) -> list[str]:
    for number, test in enumerate(tests):
        try:
            ast.parse(test)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise RewardError(f"column 'tests', test {number}: {test[:80]!r} is no Python: {error}") from None
    if len(setups_in(tests)) == len(tests):
        raise RewardError(
            f"column 'tests' tests nothing: {tests[0]!r:.80} and what follows only import, define or assign; "
            "write an assert, or a call of what they define, such as check(name)"
        )
    return tests


def _executed(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when the text does: those in an if or a for, and not those in a function."""
    for node in body:
        yield node
        if not isinstance(node, DEFINITIONS):
            for part in ("body", "orelse", "finalbody"):
                yield from _executed(getattr(node, part, ()))
            for branch in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
                yield from _executed(branch.body)


def _can_fail(node: ast.stmt) -> bool:
    is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return isinstance(node, ast.Assert | ast.Raise | ast.Expr) and not is_docstring
