"""Does the code in a completion pass its tests?"""

from __future__ import annotations

import ast
import builtins
import json
import re
import socket
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

from rewards.code.formats import Call, Pair, read_tests, setups_in
from rewards.code.sandbox import Limits, Sandbox, TooMuchOutput, sandbox_problem
from rewards.errors import RewardError, Undecidable
from rewards.function import reward
from rewards.rules.extract import answer_text

FENCE = re.compile(r"(?P<indent>(?:^|(?<=\n))[^\S\n]*)?(?P<fence>`{3,}|(?<![^\s])~{3,})[^\S\n]*(?P<language>[\w+-]*)[^\n`]*\n")
PYTHON = ("", "python", "py", "python3")
MOST_ENDS_TRIED = 8
"""A fence may stand in a string of the code: that many ends of a block are tried until what is before one is Python."""
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
WHOLE = re.compile(r"[-+]?\d+")
COMPARED = """
inf, nan = float("inf"), float("nan")

def plain_(value):
    if isinstance(value, (list, tuple)):
        return [plain_(item) for item in value]
    return {key: plain_(item) for key, item in value.items()} if isinstance(value, dict) else value

def is_near_(given, wanted):
    if type(given) is list and type(wanted) is list:
        return len(given) == len(wanted) and all(map(is_near_, given, wanted))
    if type(given) in (int, float) and type(wanted) in (int, float) and float in (type(given), type(wanted)):
        return given == wanted or abs(given - wanted) <= TOLERANCE * max(1, abs(wanted))
    return given == wanted

def is_right_(given, wanted):
    given, wanted = plain_(given), plain_(wanted)
    return is_near_(given, wanted) or (type(wanted) is list and len(wanted) == 1 and is_near_(given, wanted[0]))
"""
"""What compares the results of calls: APPS wraps a result in a list, and JSON knows no tuples."""
CALLED = """
def called_FUNCTION(*arguments, **keywords):
    try:
        function = Solution().FUNCTION
    except (NameError, AttributeError):
        function = FUNCTION
    return function(*arguments, **keywords)
"""


def _check(language: str, timeout_s: float, memory_mib: int, score: str, answer_tag: str, tolerance: float) -> str | None:
    if timeout_s <= 0:
        return f"timeout_s is {timeout_s:g}; it must be positive"
    if memory_mib < 64:
        return f"memory_mib is {memory_mib}; the interpreter alone needs 64"
    if not 0 <= tolerance < 1:
        return f"tolerance is {tolerance:g}; it must be at least 0, and below 1"
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
    tolerance: float = 0.0,
) -> float | None:
    """The share of the tests in column ``tests`` that the completion's code passes, or with score "all" 1 for every one and 0 for less.

    tests        a list of Python statements that must not raise (``assert add(1, 2) == 3``), or of {"stdin": ..., "stdout": ...}, or what
                 APPS, TACO and LiveCodeBench have (inputs and outputs, with or without fn_name); or such a list as JSON
    timeout_s    wall time for all of a sample's tests, the start of the sandboxes not counted
    memory_mib   address space of each process
    tolerance    by how much a printed number, or one that a called function returns, may differ, absolutely or relatively; whole numbers may not

    Statements that only import, define or assign are kept for those after them, and are no tests.

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
        if isinstance(wanted[0], Pair):
            passed = _pairs(source, wanted, limits, tolerance)
        elif isinstance(wanted[0], Call):
            passed = _asserts(source, *_calls(wanted, tolerance), limits)
        else:
            passed = _asserts(source, wanted, names_from_answer(wanted), limits)  # type: ignore[arg-type]
    except TimeoutError:
        raise Undecidable(f"the tests did not end within {timeout_s:g} s") from None
    share = sum(passed) / len(passed)
    return share if score == "share" else float(share == 1)


def find_code(completion: str, answer_tag: str = "answer") -> str | None:
    """The last fenced block of Python, or of no named language, where the answer is; None where there is none."""
    answer = answer_text(completion, answer_tag)
    found = [text for name, text in _blocks(completion if answer is None else answer) if name in PYTHON and text.strip()]
    return found[-1] if found else None


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    """Language and content of each fenced block that is closed."""
    start = 0
    while opening := FENCE.search(text, start):
        language, indent, begin = opening["language"].lower(), opening["indent"] or "", opening.end()
        ends = _ends(text, begin, opening["fence"])
        if not ends:
            return
        contents = [
            re.sub(rf"^[^\S\n]{{1,{len(indent) or 1}}}", "", text[begin:end], flags=re.MULTILINE) if indent else text[begin:end]
            for end, _ in ends
        ]
        is_open = language in PYTHON and len(ends) > 1
        chosen = next((number for number, content in enumerate(contents) if _is_python(content)), 0) if is_open else 0
        yield language, contents[chosen]
        start = ends[chosen][1]


def _ends(text: str, begin: int, fence: str) -> list[tuple[int, int]]:
    """Where a block may end, and where the text goes on: first at the fences on lines of their own, then at those within a line."""
    alone = re.finditer(rf"^[^\S\n]*{re.escape(fence[0])}{{{len(fence)},}}[^\S\n]*$", text[begin:], re.MULTILINE)
    within = re.finditer(re.escape(fence), text[begin:])
    return [(begin + match.start(), begin + match.end()) for matches in (alone, within) for match in islice(matches, MOST_ENDS_TRIED)]


def _is_python(source: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


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


def _calls(calls: Sequence[Any], tolerance: float) -> tuple[list[str], set[str]]:
    """Statements that test calls, and the names that they take from the answer."""
    functions = sorted({call.function for call in calls})
    tests = [COMPARED.replace("TOLERANCE", repr(tolerance)), *(CALLED.replace("FUNCTION", function) for function in functions)]
    for call in calls:
        given = f"**{dict(call.arguments)!r}" if isinstance(call.arguments, Mapping) else f"*{list(call.arguments)!r}"
        tests.append(f"assert is_right_(called_{call.function}({given}), {call.output!r})")
    return tests, {"Solution", *functions}


def _asserts(source: str, tests: Sequence[str], names: Iterable[str], limits: Limits) -> list[bool]:
    asked = {"role": "tests", "tests": list(tests), "setups": setups_in(tests), "names": sorted(names)}
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


def _pairs(source: str, pairs: Sequence[Any], limits: Limits, tolerance: float) -> list[bool]:
    left_s, passed = limits.cpu_s, []
    for pair in pairs:
        with Sandbox({"role": "program", "code": source}, limits, stdin=pair.stdin) as sandbox:
            sandbox.wait_until_ready()
            start = time.monotonic()
            try:
                printed = sandbox.output(start + left_s)
                passed.append(sandbox.exit_code(start + left_s) == 0 and is_same_output(printed, pair.stdout, tolerance))
            except TooMuchOutput:
                passed.append(False)
            left_s -= time.monotonic() - start
    return passed


def is_same_output(printed: str, wanted: str, tolerance: float = 0.0) -> bool:
    """The same lines, but for the whitespace they end in and, with a tolerance, for numbers that are near enough."""
    lines, wanted_lines = _lines(printed), _lines(wanted)
    if lines == wanted_lines or not tolerance:
        return lines == wanted_lines
    pairs = [(re.split(r"(\s+)", one), re.split(r"(\s+)", other)) for one, other in zip(lines, wanted_lines, strict=False)]
    return len(lines) == len(wanted_lines) and all(
        len(one) == len(other) and all(_is_near(*words, tolerance) for words in zip(one, other, strict=True)) for one, other in pairs
    )


def _is_near(given: str, wanted: str, tolerance: float) -> bool:
    if given == wanted:
        return True
    if not (NUMBER.fullmatch(given) and NUMBER.fullmatch(wanted)) or (WHOLE.fullmatch(given) and WHOLE.fullmatch(wanted)):
        return False
    value, right = float(given), float(wanted)
    return abs(value - right) <= tolerance * max(1.0, abs(right))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
