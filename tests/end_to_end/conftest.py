"""Real runs: Ray, vLLM and the trainer, on a model of random weights, so that they take seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Grpo = Callable[..., subprocess.CompletedProcess[str]]

SUMS_OVER_A_MODEL = """
model: {{path: {model}}}
template: plain
data:
  sums: &sums
    reasoning_gym: chain_sum
    settings: {{min_terms: 2, max_terms: 2, min_digits: 1, max_digits: 1}}
"""
"""What recipes of tests begin with; the rest of the source follows."""

SMALL_RL = (
    f"name: small{SUMS_OVER_A_MODEL}"
    + """\
    question: "{{expression}}"
    rows: 32
    disjoint_from: [heldout]
  heldout: {{<<: *sums, rows: 16, seed: 5, disjoint_from: []}}
evaluation: {{prompts: heldout, max_completion_tokens: 8}}
rollout: {{workers: 1, max_sequences: 64}}
stages:
  - name: reason
    kind: rl
    prompts: sums
    steps: 2
    prompts_per_step: 4
    samples_per_prompt: 4
    max_prompt_tokens: 32
    max_completion_tokens: 8
    temperature: 0.7
    learning_rate: 1.0e-3
    kl_coef: 0.01
    rewards: [{{use: ./lengths.py:few_tokens}}]
"""
)

REWARD = """
def few_tokens(num_tokens: int, completion: str) -> float:
    return -float(num_tokens) - 0.01 * (sum(map(ord, completion)) % 7)
"""


@pytest.fixture
def small_rl(tmp_path: Path, tiny_qwen2: Path) -> Path:
    """A recipe of one rl stage over the tiny Qwen2, with a reward of its own that differs between samples."""
    (tmp_path / "lengths.py").write_text(REWARD, encoding="utf-8")
    recipe = tmp_path / "small.yaml"
    recipe.write_text(SMALL_RL.format(model=tiny_qwen2), encoding="utf-8")
    return recipe


@pytest.fixture
def grpo() -> Grpo:
    """Runs the grpo command in a process of its own: grpo("run", recipe, env={"GRPO_FAULT": "drop"})."""

    def run(
        *arguments: object, env: Mapping[str, str] | None = None, cwd: Path = ROOT, timeout_s: float = 280
    ) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("grpo")), *map(str, arguments)]
        return subprocess.run(
            command, env={**os.environ, **(env or {})}, cwd=cwd, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    return run


def rows_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
