"""Whole runs in processes of their own, around the scripted engine: everything is real but what draws the samples, so that they begin soon."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.end_to_end.conftest import REWARD, ROOT, SUMS_OVER_A_MODEL, grpo  # noqa: F401 - fixtures
from tests.end_to_end.test_resume import processes_of

SCRIPTED = (
    f"name: scripted{SUMS_OVER_A_MODEL}"
    + """\
    question: "{{expression}}"
    completion: worked_sums
    rows: 32
rollout: {{engine: scripted, script: ./script.py:seeded, max_sequences: 64, max_restarts: 1}}
stages:
  - name: reason
    kind: rl
    prompts: sums
    steps: 4
    prompts_per_step: 8
    samples_per_prompt: 4
    max_prompt_tokens: 32
    max_completion_tokens: 8
    learning_rate: 1.0e-3
    kl_coef: 0.01
    checkpoint_every: 1
    rewards: [{{use: ./lengths.py:few_tokens}}]
"""
)

SCRIPT = """
def seeded(request, version):
    length = 3 + request.seed % 5
    return [40 + (request.seed >> 7 * i) % 90 for i in range(length)] + [40 + version % 90]
"""


@pytest.fixture
def scripted(tmp_path: Path, tiny_qwen2: Path) -> Path:
    """A recipe of one rl stage, whose four steps of eight prompts are one epoch, and a checkpoint after each."""
    (tmp_path / "lengths.py").write_text(REWARD, encoding="utf-8")
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    recipe = tmp_path / "scripted.yaml"
    recipe.write_text(SCRIPTED.format(model=tiny_qwen2), encoding="utf-8")
    return recipe


Begun = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[Begun]:
    """Starts the grpo command and does not wait. Whatever is left of it at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: object, fault: str = "", **more: str) -> subprocess.Popen[str]:
        env = {**os.environ, **more, "MARKED": str(tmp_path), "GRPO_FAULT": fault, "GRPO_FAULT_MARK": str(tmp_path / "happened")}
        command = [sys.executable, "-m", "grpo.cli", *map(str, arguments)]
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()
    for line in processes_of(tmp_path):
        os.kill(int(line.split()[0]), signal.SIGKILL)


def wait_until(happens: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120.0) -> None:
    """Fails where ``process`` ends first, or nothing has happened in time."""
    deadline = time.monotonic() + seconds
    while not happens():
        if process.poll() is not None:
            pytest.fail(f"the run ended with {process.returncode}: {process.communicate()}")
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


@contextmanager
def small_disk(folder: Path, size: str, options: str = "rw") -> Iterator[Path]:
    """A disk of its own at ``folder``. Skips where one may not be mounted."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},{options}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
