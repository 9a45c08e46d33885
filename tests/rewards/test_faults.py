"""Rewards that hang, exit, hoard memory or lose their process: only the sample at fault pays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

from rewards import RewardError, RewardRuntime, RewardSpec, ScoreInput

MINE = """
    import os, signal, sys, time
    from rewards import reward

    def trouble(completion):
        if completion == "deaf loop":       # ignores the alarm, and every exception
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            while True:
                try:
                    while True:
                        pass
                except BaseException:
                    pass
        if completion == "loop":
            while True:
                pass
        if completion == "loop in C":       # looks at no signals
            sum(range(10**12))
        if completion == "exit":
            os._exit(9)
        if completion == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if completion == "sys.exit":
            sys.exit("bye")
        if completion == "memory":
            hoard = [bytearray(2**24) for _ in range(4096)]
        return 1.0

    @reward(undecidable=0.0)
    def judge(completion):
        if completion == "loop":
            time.sleep(60)
        return 1.0

    def shows(completion, thing=None):
        return 1.0

    def slow(completion):
        time.sleep(1)
        return 1.0

    def pid(completion):
        return float(os.getpid())

    def slow_batch(completions, **kwargs):
        if "loop" in completions:
            time.sleep(60)
        return [1.0] * len(completions)
"""


@pytest.fixture
def runtime(reward_file: Callable[..., Path]) -> Iterator[Callable[..., RewardRuntime]]:
    opened: list[RewardRuntime] = []

    def make(name: str, **settings) -> RewardRuntime:
        opened.append(RewardRuntime([RewardSpec(name)], base=reward_file(MINE), **settings))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_all_processes_of_a_run_costs_no_sample(runtime, samples, signum: signal.Signals) -> None:
    """What scancel, systemd and a closed terminal do; the driver finishes its step all the same. A process that has just begun is spared too."""
    scorer = runtime("./mine.py:slow", deadline_s=10)
    scored: list = []
    scoring = threading.Thread(target=lambda: scored.extend(scorer.score(samples("a", "b"))))
    scoring.start()
    until = time.monotonic() + 60
    signalled = set()
    while scoring.is_alive() and time.monotonic() < until:
        for process in psutil.Process().children(recursive=True):
            if process.pid not in signalled:
                process.send_signal(signum)
                signalled.add(process.pid)
        time.sleep(0.01)
    scoring.join()
    assert [one.reward for one in scored] == [1, 1] and [one.notes for one in scored] == [{}, {}]
    assert len(signalled) >= 2


@pytest.mark.parametrize(
    ("fault", "note"),
    [
        ("deaf loop", "timeout"),
        ("loop", "timeout"),
        ("loop in C", "timeout"),
        ("exit", "error: its process died (exit code 9)"),
        ("segfault", "error: its process died (exit code -11)"),
        ("sys.exit", "error: SystemExit: bye"),
        ("memory", "error: MemoryError:"),
    ],
)
def test_only_the_sample_at_fault_pays(runtime, samples, fault: str, note: str) -> None:
    scorer = runtime("./mine.py:trouble", deadline_s=0.3 if note == "timeout" else 5, memory_gib=0.2)
    scorer.score(samples("fine"))
    start = time.perf_counter()
    scored = scorer.score(samples("a", "b", fault, "c", "d"))
    assert [one.reward for one in scored] == [1, 1, None, 1, 1]
    assert [one.notes for one in scored] == [{}, {}, {"trouble": note}, {}, {}]
    assert time.perf_counter() - start < 20
    counts = scorer.counts["trouble"]
    assert (counts["timeout"], counts["error"]) == ((1, 0) if note == "timeout" else (0, 1))


def test_a_sample_that_cannot_travel_to_a_process_is_an_error(runtime) -> None:
    rows = [ScoreInput({"completion": "a", "thing": thing}) for thing in (1, lambda: 1, 2)]
    scored = runtime("./mine.py:shows").score(rows)
    assert [one.reward for one in scored] == [1, None, 1] and "pickle" in scored[1].notes["shows"]


def test_a_missed_deadline_is_undecidable_where_the_reward_says_so(runtime, samples) -> None:
    scorer = runtime("./mine.py:judge", deadline_s=0.3)
    assert [(one.reward, one.notes) for one in scorer.score(samples("a", "loop"))] == [(1, {}), (0, {"judge": "undecidable"})]


def test_a_batch_reward_that_hangs_is_stopped(runtime, samples) -> None:
    scorer = runtime("./mine.py:slow_batch", deadline_s=0.3)
    assert [one.notes for one in scorer.score(samples("a", "loop"))] == [{"slow_batch": "timeout"}] * 2
    assert [one.reward for one in scorer.score(samples("a", "b"))] == [1, 1]


def test_a_process_killed_while_idle_is_replaced(runtime, samples) -> None:
    scorer = runtime("./mine.py:pid")
    first = scorer.score(samples("a"))[0].reward
    os.kill(int(first), signal.SIGKILL)
    time.sleep(0.3)
    assert scorer.score(samples("a"))[0].reward not in (None, first)


def test_close_kills_what_is_running_and_score_starts_again(runtime, samples) -> None:
    scorer = runtime("./mine.py:pid")
    pid = int(scorer.score(samples("a"))[0].reward)
    scorer.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert scorer.score(samples("a"))[0].reward is not None


def test_a_file_that_ends_its_process_while_loading_is_an_error(reward_file, samples) -> None:
    folder = reward_file("import os\nif 'DRIVER' not in os.environ:\n    os._exit(3)\n\ndef f(completion):\n    return 1.0\n")
    os.environ["DRIVER"] = "1"
    try:
        scorer = RewardRuntime([RewardSpec("./mine.py:f")], base=folder)
    finally:
        del os.environ["DRIVER"]
    with scorer, pytest.raises(RewardError, match="the processes of rewards f hang or die while loading"):
        scorer.score(samples("a"))


@pytest.mark.parametrize(
    "answer",
    [
        "9^{9^{9^{9^9}}}",
        "1" * 100_000,
        r"\frac{1}{" * 1000 + "1" + "}" * 1000,
        "(" * 400 + "1" + ")" * 400,
    ],
    ids=lambda text: text[:12],
)
def test_pathological_latex_is_undecidable_within_the_deadline(math_runtime, samples, answer: str) -> None:
    start = time.perf_counter()
    right, odd = math_runtime.score(samples("<answer>42</answer>", f"<answer>{answer}</answer>", answer="42"))
    assert (right.reward, odd.reward, odd.notes) == (1, 0, {"math": "undecidable"})
    assert time.perf_counter() - start < 15


@pytest.fixture(scope="module")
def math_runtime() -> Iterator[RewardRuntime]:
    with RewardRuntime([RewardSpec("math")], deadline_s=0.3) as scorer:
        yield scorer


def test_a_script_without_a_main_guard_works_and_leaves_no_orphans(reward_file) -> None:
    """Spawned processes would import the script again, and start it all over; ours do not. Killed, it takes its workers along."""
    folder = reward_file(MINE)
    script = """
        import os, sys
        print("started", flush=True)
        from rewards import RewardRuntime, RewardSpec, ScoreInput
        runtime = RewardRuntime([RewardSpec("./mine.py:pid")])
        print(int(runtime.score([ScoreInput({"completion": "a"})])[0].reward), flush=True)
        os.kill(os.getpid(), 9)
    """
    (folder / "script.py").write_text(dedent(script))
    path = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "script.py"], cwd=folder, env=path, capture_output=True, text=True, timeout=30)
    started, pid = done.stdout.split()
    assert started == "started" and done.returncode == -signal.SIGKILL
    for _ in range(50):
        if not _is_alive(int(pid)):
            return
        time.sleep(0.1)
    pytest.fail("the worker outlived its driver")


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
