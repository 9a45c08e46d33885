"""Hostile code under the code reward: contained, within the deadline, nothing left running, the host as it was. Real processes throughout.

Each attack names its process after a marker of its own (children inherit the name), so that the host can look for what is left of it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any
from uuid import uuid4

import psutil
import pytest

from rewards import RewardRuntime, RewardSpec, ScoreInput, Undecidable, load_reward
from rewards.code.reward import code as score

ROOT = Path(__file__).parents[2]
DEADLINE_S = 1.0
SLACK_S = 9.0
"""For starting, killing and a busy machine."""


def with_name(marker: str, source: str) -> str:
    named = f"import ctypes\nctypes.CDLL(None).prctl(15, b'{marker}')\n"
    return f"<answer>\n```python\n{named}{dedent(source)}\n```\n</answer>"


def test_a_signal_to_all_processes_of_a_run_is_no_wrong_answer() -> None:
    """The driver finishes its step: what runs in the sandbox must be scored as if nothing had happened."""
    marker = f"s{uuid4().hex[:12]}"
    code = with_name(marker, "import time\ntime.sleep(1.5)\nprint(int(input()) + 1)")
    scores: list[Any] = []
    judging = threading.Thread(target=lambda: scores.append(score(completion=code, tests=[{"stdin": "1", "stdout": "2"}], timeout_s=20.0)))
    judging.start()
    until = time.monotonic() + 60
    while not running(marker) and judging.is_alive() and time.monotonic() < until:
        time.sleep(0.05)
    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        for pid in [*running(marker), *(child.pid for child in psutil.Process().children(recursive=True))]:
            os.kill(pid, signum)
    judging.join()
    assert scores == [1.0]


def running(marker: str) -> list[int]:
    """Processes of that name, but for those that are dead and not yet collected."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and (folder / "comm").read_text().strip() == marker:
                if (folder / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                    found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


def is_gone(marker: str) -> bool:
    end = time.monotonic() + 3
    while running(marker):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def marker() -> Iterator[str]:
    name = f"m{uuid4().hex[:12]}"
    yield name
    assert is_gone(name), f"still running: {running(name)}"


@pytest.fixture
def attack(marker: str) -> Callable[..., float | None | str]:
    """Scores an attack, in time; "undecidable" where it had to be stopped."""

    def run(source: str, tests: Any = ("assert f() == []",), **settings: Any) -> float | None | str:
        start = time.monotonic()
        try:
            return score(with_name(marker, source), list(tests), **{"timeout_s": DEADLINE_S, **settings})
        except Undecidable:
            return "undecidable"
        finally:
            assert time.monotonic() - start < DEADLINE_S + SLACK_S

    return run


def test_the_marker_is_seen_while_code_runs(marker: str) -> None:
    """What shows that looking for it would find something."""
    seen: set[int] = set()
    asked = {"completion": with_name(marker, "while True: pass"), "tests": ["assert f()"]}
    thread = threading.Thread(target=lambda: load_reward("code", timeout_s=DEADLINE_S)(**asked))
    thread.start()
    while thread.is_alive():
        seen |= {*running(marker)}
    assert len(seen) == 1


def test_host_files_home_and_environment_are_absent(attack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("API_KEY", "secret")
    (tmp_path / "api_key").write_text("secret")
    paths = [
        "/etc",
        "/etc/passwd",
        "/root",
        "/home",
        "/var",
        "/usr",
        "/proc",
        "/sys",
        "/mnt",
        "/dev/shm",
        str(Path.home()),
        str(ROOT),
        str(tmp_path),
    ]
    paths += [str(tmp_path / "api_key"), sys.prefix, sys.executable, str(Path(pytest.__file__).parent), "~"]
    source = f"""
        import os
        def f():
            found = [path for path in {paths!r} if os.path.exists(os.path.expanduser(path))]
            for folder, _, names in os.walk("/"):
                found += [os.path.join(folder, name) for name in names if name in ("api_key", "sandbox.py", ".bashrc")]
            return found + [name for name in os.environ if name not in ("LD_LIBRARY_PATH", "PYTHONHASHSEED", "PWD")]
    """
    assert attack(source) == 1


def test_only_a_small_scratch_folder_can_be_written(attack) -> None:
    source = """
        import os
        def f():
            written = []
            for folder, _, names in os.walk("/"):
                for path in [os.path.join(folder, "new"), *[os.path.join(folder, name) for name in names[:3]]]:
                    try:
                        with open(path, "ab"): pass
                    except OSError: continue
                    written.append(path)
            return sorted(written)
        def fill():
            size = 0
            for number in range(100):
                try:
                    with open(f"/tmp/{number}", "wb") as file:
                        for _ in range(2**10): size += file.write(bytes(2**20)); file.flush()
                except OSError: pass
            return size
    """
    assert attack(source, ["assert f() == ['/dev/null', '/tmp/new']", "assert 0 < fill() <= 16 * 2**20"], timeout_s=10) == 1


def test_it_has_no_rights(attack) -> None:
    source = """
        import os
        def f():
            done = []
            for name, attempt in {
                "root": lambda: os.setuid(0),
                "chroot": lambda: os.chroot("/tmp"),
                "nice": lambda: os.nice(-5),
                "chown": lambda: os.chown("/tmp", 0, 0),
                "mount": lambda: ctypes.CDLL(None).mount(b"none", b"/tmp", b"tmpfs", 0, 0) and 1 / 0,
                "more processes": lambda: __import__("resource").setrlimit(6, (-1, -1)),
            }.items():
                try: attempt()
                except (OSError, ValueError, ZeroDivisionError): continue
                done.append(name)
            return done + [os.getuid()] * (os.getuid() < 65534)
    """
    assert attack(source) == 1


def test_there_is_no_network(attack, marker: str) -> None:
    """The host listens on loopback and on an abstract socket: neither is there inside."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0{marker}")
        abstract.listen()
        source = f"""
            import socket
            def f():
                reached = [name for _, name in socket.if_nameindex() if name != "lo"]
                for family, address in ((2, ("127.0.0.1", {server.getsockname()[1]})), (2, ("1.1.1.1", 53)), (1, "\\0{marker}")):
                    with socket.socket(family) as one:
                        one.settimeout(0.2)
                        if one.connect_ex(address) == 0: reached.append(address)
                try: reached.append(socket.gethostbyname("pypi.org"))
                except OSError: pass
                return reached
        """
        assert attack(source) == 1


@pytest.mark.parametrize("bomb", ["os.fork()", "threading.Thread(target=time.sleep, args=(60,)).start()"])
def test_a_fork_bomb_gets_few_processes(attack, marker: str, bomb: str) -> None:
    most = 0

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, len(running(marker)))

    done = threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    found = attack(f"import os, threading, time\nwhile True:\n    try: {bomb}\n    except (OSError, RuntimeError): pass")
    done.set()
    watcher.join()
    assert found == "undecidable" and 1 <= most <= 8


def test_a_gigabyte_of_memory_is_refused(attack) -> None:
    source = "def f():\n    try:\n        return len(bytearray(2**30))\n    except MemoryError:\n        return []"
    assert attack(source) == 1
    assert attack("hoard = []\nwhile True: hoard.append(bytearray(2**24))", timeout_s=5) == 0


def test_a_gigabyte_of_output_is_cut_off(attack) -> None:
    flood = "import os\nfor _ in range(2**10): os.write({}, b'x' * 2**20)\ndef f():\n    return []"
    assert attack(flood.format(1), [{"stdin": "", "stdout": "x"}], timeout_s=5) == 0
    assert attack(flood.format(2), [{"stdin": "", "stdout": ""}], timeout_s=5) == 1  # nobody reads what goes to stderr
    assert attack(flood.format(1), timeout_s=5) == 1  # nor, where functions are called, what goes to stdout


@pytest.mark.parametrize("target", ["os.getppid()", "1", "-1", "0"])
def test_killing_its_parent_or_everyone_harms_itself_only(attack, target: str) -> None:
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        found = attack(f"import os\ntry: os.kill({target}, 9)\nexcept OSError: pass\ndef f():\n    return []")
        assert found in (0, 1) and bystander.poll() is None  # 1 where the kernel let nothing be killed
    finally:
        bystander.kill()
        bystander.wait()
    assert attack("def f():\n    return []") == 1


def test_ignoring_signals_does_not_help(attack) -> None:
    source = """
        import signal
        for number in set(range(1, 65)) - {9, 19, 32, 33}: signal.signal(number, signal.SIG_IGN)
        while True:
            try:
                while True: pass
            except BaseException: pass
    """
    assert attack(source) == "undecidable"


DAEMON = """
    import os, time
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            {}
            time.sleep(300)
        os._exit(0)
    def f():
        return []
    print("right")
"""


def test_a_daemon_ends_with_its_sandbox(attack) -> None:
    """Double fork and a session of its own, holding stdout open or not."""
    assert attack(DAEMON.format("os.close(1)")) == 1
    assert attack(DAEMON.format("pass"), [{"stdin": "", "stdout": "right"}]) == 1


def test_stopping_itself_is_running_out_of_time(attack) -> None:
    assert attack("import os\nos.kill(os.getpid(), 19)", [{"stdin": "", "stdout": ""}]) == "undecidable"


def test_a_killed_reward_process_takes_its_sandboxes_along(marker: str, tmp_path: Path) -> None:
    source = f"""
        from rewards.code.reward import code
        code({with_name(marker, "while True: pass")!r}, ["assert f()"], timeout_s=100)
    """
    (tmp_path / "script.py").write_text(dedent(source))
    process = subprocess.Popen([sys.executable, "script.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    end = time.monotonic() + 30
    while not running(marker) and time.monotonic() < end:
        time.sleep(0.02)
    assert running(marker)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_the_runtimes_deadline_ends_sandboxes_too(marker: str) -> None:
    hostile = ScoreInput({"completion": with_name(marker, "while True: pass"), "tests": ["assert f()"]})
    with RewardRuntime([RewardSpec("code", settings={"timeout_s": 100.0})], deadline_s=1.0) as runtime:
        (scored,) = runtime.score([hostile])
        assert (scored.reward, scored.notes) == (0, {"code": "undecidable"}) and is_gone(marker)


@pytest.mark.faults
def test_a_step_of_attacks_costs_no_other_sample_anything(marker: str) -> None:
    """Sixty-four samples, every other one an attack, in two processes: the rest score as they do alone, and quickly enough."""
    attacks = ["while True: os.fork()", "while True: pass", "x = 'x' * 2**34", "os.kill(-1, 9)", "while True: print('x' * 2**20)"]
    right = "<answer>```python\ndef f():\n    return []\n```</answer>"
    completions = [with_name(marker, f"import os\n{attacks[n // 2 % 5]}") if n % 2 else right for n in range(64)]
    inputs = [ScoreInput({"completion": completion, "tests": ["assert f() == []"]}) for completion in completions]
    before = open_files()
    with RewardRuntime([RewardSpec("code", settings={"timeout_s": 1.0})], processes=2) as runtime:
        scored = runtime.score(inputs)
    assert [one.reward for one in scored] == [1.0, 0.0] * 32
    assert open_files() <= before + 5 and is_gone(marker)


@pytest.mark.faults
def test_a_hundred_scores_leak_nothing() -> None:
    right = "<answer>```python\ndef f():\n    return []\n```</answer>"
    assert score(right, ["assert f() == []"]) == 1
    before = open_files(), children()
    for _ in range(100):
        assert score(right, ["assert f() == []"]) == 1
    assert (open_files(), children()) == before


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
