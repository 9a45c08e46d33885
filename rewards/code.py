"""Does the code in a completion pass its tests?"""

from __future__ import annotations

import ast
import builtins
import json
import re
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from rewards.errors import RewardError, Undecidable
from rewards.extract import answer_text
from rewards.function import reward
from rewards.sandbox import Limits, Sandbox, TooMuchOutput, sandbox_problem

FENCED = re.compile(r"```[^\S\n]*([\w+-]*)[^\n]*\n(.*?)```", re.DOTALL)


class Pair(NamedTuple):
    """What a program is given, and what it must print."""

    stdin: str
    stdout: str


def _check(language: str, timeout_s: float, memory_mib: int, score: str, answer_tag: str) -> str | None:
    if timeout_s <= 0:
        return f"timeout_s is {timeout_s:g}; it must be positive"
    if memory_mib < 64:
        return f"memory_mib is {memory_mib}; the interpreter alone needs 64"
    return sandbox_problem()


def fenced(solution: str) -> str:
    return f"```python\n{solution}\n```"


@reward(required=True, undecidable=0.0, check=_check, prepare=sandbox_problem, gold="solution", write=fenced)
def code(
    completion: str,
    tests: Any,
    *,
    language: Literal["python"] = "python",
    timeout_s: float = 3.0,
    memory_mib: int = 512,
    score: Literal["all", "share"] = "all",
    answer_tag: str = "answer",
) -> float | None:
    """The share of the tests in column ``tests`` that the completion's code passes, or with score "all" 1 for every one and 0 for less.

    tests        a list of Python statements that must not raise (``assert add(1, 2) == 3``), or of {"stdin": ..., "stdout": ...}; or such a
                 list as JSON
    timeout_s    wall time for all of a sample's tests, the start of the sandboxes not counted
    memory_mib   address space of each process

    The code is the last fenced block in the answer block, or in the whole completion where there is no answer block; none is 0. Printed
    lines are compared without the whitespace they end in. Code that runs out of time, or takes its tests with it, is undecidable: 0, and
    counted. No tests: None. Tests that can't be read, and a sandbox that doesn't start, raise RewardError.
    """
    wanted = read_tests(tests)
    if not wanted:
        return None
    source = find_code(completion, answer_tag)
    if source is None:
        return 0.0
    limits = Limits(cpu_s=timeout_s, memory_mib=memory_mib)
    try:
        passed = _asserts(source, wanted, limits) if isinstance(wanted[0], str) else _pairs(source, wanted, limits)
    except TimeoutError:
        raise Undecidable(f"the tests did not end within {timeout_s:g} s") from None
    share = sum(passed) / len(wanted)
    return share if score == "share" else float(share == 1)


def find_code(completion: str, answer_tag: str = "answer") -> str | None:
    """The last fenced block of Python, or of no named language, where the answer is; None where there is none."""
    answer = answer_text(completion, answer_tag)
    blocks = FENCED.findall(completion if answer is None else answer)
    found = [text for name, text in blocks if name.lower() in ("", "python", "py", "python3") and text.strip()]
    return found[-1] if found else None


def read_tests(tests: Any) -> list[str] | list[Pair]:
    """The tests of a row, all of one kind. Raises RewardError for what is neither kind, or no Python."""
    if isinstance(tests, str):
        try:
            tests = json.loads(tests)
        except ValueError:
            tests = [tests] if tests.strip() else []
    found: list[Any] = [] if tests is None else [tests] if isinstance(tests, str | Mapping) else list(tests)
    if all(isinstance(test, str) for test in found):
        for number, test in enumerate(found):
            try:
                ast.parse(test)
            except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
                raise RewardError(f"column 'tests', test {number}: {test[:80]!r} is no Python: {error}") from None
        return found
    if all(isinstance(test, Mapping) and {"stdin", "stdout"} <= test.keys() for test in found):
        return [Pair(str(test["stdin"]), str(test["stdout"])) for test in found]
    shown = repr(found[0])[:80]
    raise RewardError(f"column 'tests': expected statements, or objects with stdin and stdout, and all alike; found {shown}")


def names_from_answer(tests: Sequence[str]) -> set[str]:
    """The names that tests use and neither define nor find among the builtins: an answer cannot slip them an ``abs`` of its own.

    Tests that use builtin names alone mean the answer's (a task may well ask for a function called sum).
    """
    nodes = [node for test in tests for node in ast.walk(ast.parse(test))]
    used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    defined = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    defined |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    defined |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    defined |= {(node.asname or node.name).partition(".")[0] for node in nodes if isinstance(node, ast.alias)}
    defined |= {node.name for node in nodes if isinstance(node, ast.ExceptHandler) and node.name}
    called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    return used - defined - set(dir(builtins)) or (called - defined) & set(dir(builtins))


def _asserts(source: str, tests: Sequence[Any], limits: Limits) -> list[bool]:
    asked = {"role": "tests", "tests": tests, "names": sorted(names_from_answer(tests))}
    ours, theirs = socket.socketpair()
    with ours, theirs:
        answer = Sandbox({"role": "answer", "code": source}, limits, channel=theirs)
        with answer, Sandbox(asked, limits, channel=ours) as judge:
            ours.close()
            theirs.close()  # so that either side sees the other end
            answer.wait_until_ready()
            judge.wait_until_ready()
            said = judge.output(time.monotonic() + limits.cpu_s)
    try:
        verdict = json.loads(said)
    except ValueError:
        raise Undecidable("the tests ended without a verdict: the code returned more than they can hold") from None
    if "unsupported" in verdict:
        raise RewardError(verdict["unsupported"])
    return verdict["passed"]


def _pairs(source: str, pairs: Sequence[Any], limits: Limits) -> list[bool]:
    left_s, passed = limits.cpu_s, []
    for pair in pairs:
        with Sandbox({"role": "program", "code": source}, limits, stdin=pair.stdin) as sandbox:
            sandbox.wait_until_ready()
            start = time.monotonic()
            try:
                printed = sandbox.output(start + left_s)
                passed.append(sandbox.exit_code(start + left_s) == 0 and _lines(printed) == _lines(pair.stdout))
            except TooMuchOutput:
                passed.append(False)
            left_s -= time.monotonic() - start
    return passed


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
