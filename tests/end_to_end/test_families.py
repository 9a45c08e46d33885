"""The families of tests/trainer/families.py by the command line: plan, sft, rl with the hf engine, export; or one line that says why not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.conftest import Grpo
from tests.trainer.families import FAMILIES, REFUSED, write_family

RECIPE = """
name: family
model: {path: model}
template: plain
data: {rows: {jsonl: rows.jsonl}}
rollout: {engine: hf, workers: 1, max_sequences: 16, dtype: float32}
trainer: {precision: float32}
stages:
  - {name: teach, kind: sft, data: rows, epochs: 1, batch_size: 4, max_tokens: 64, learning_rate: 1.0e-3, gradient_checkpointing: true}
  - {name: reason, kind: rl, prompts: rows, steps: 2, prompts_per_step: 2, samples_per_prompt: 2, max_prompt_tokens: 32, max_completion_tokens: 8,
     learning_rate: 1.0e-3, rewards: [{use: ./lengths.py:few_tokens}]}
"""
REWARD = """
def few_tokens(num_tokens: int, completion: str) -> float:
    return -float(num_tokens) - 0.01 * (sum(map(ord, completion)) % 7)
"""


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_goes_all_the_way_or_is_refused_in_a_line(family: str, grpo: Grpo, tokenizer, tmp_path: Path) -> None:
    write_family(family, tokenizer, tmp_path / "model")
    rows = [{"prompt": f"{i} + {i} = ", "completion": f"{2 * i}", "answer": f"{2 * i}"} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "lengths.py").write_text(REWARD)
    (tmp_path / "family.yaml").write_text(RECIPE)
    planned = grpo("plan", "family.yaml", cwd=tmp_path)
    if family in REFUSED:
        ran = grpo("run", "family.yaml", cwd=tmp_path)
        for result in (planned, ran):
            assert result.returncode == 2 and "Traceback" not in result.stderr and REFUSED[family] in result.stderr
        assert not (tmp_path / "runs").exists()
        return
    assert planned.returncode == 0, planned.stderr
    ran = grpo("run", "family.yaml", "--out", "run", "--json", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    metrics = json.loads(ran.stdout)["stages"][1]["metrics"]
    exported = grpo("export", "run", "--to", "out", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert metrics["last/rollout/logprob_gap"] < 1e-3  # engine against trainer, of the stage that began with what sft had written
    assert _gap(tmp_path / "run" / "02-reason" / "model", tmp_path / "out") == 0.0


def _gap(made: Path, exported: Path) -> float:
    import torch
    from transformers import AutoModelForCausalLM

    from grpo.trainer.layout_check import plain_logprobs, probe

    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (made, exported)]
    one, other = (plain_logprobs(model, probe(model)) for model in models)
    return float(np.nanmax(np.abs(one - other)))
