"""The rows that are shipped, a row of one's own, and what is said of a name that leads nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from grpo.algorithm import GRPO, TABLE, load_algorithm
from grpo.algorithm.names import NAMES

MINE = """
from dataclasses import replace
from grpo.algorithm import GRPO

def longer_is_better(rewards_PG, counts_PG):
    return rewards_PG * 2

MINE = replace(GRPO, name="mine", advantage=longer_is_better, clip_high=0.5)
NUMBER = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    return tmp_path


def test_a_shipped_name_is_its_row() -> None:
    assert load_algorithm("grpo", Path("/nowhere")) is GRPO
    assert NAMES == tuple(TABLE)


@pytest.mark.parametrize(
    ("name", "aggregate", "clips", "kl_coef", "advantages"),
    [
        # rewards 1 0 0 0: z-scores 3/2 and -1/2, centred 3/4 and -1/4
        ("grpo", "sequence_mean", (0.2, 0.2), 0.001, [1.5, -0.5, -0.5, -0.5]),
        ("dr_grpo", "constant", (0.2, 0.2), 0.0, [0.75, -0.25, -0.25, -0.25]),
        ("dapo", "token_mean", (0.2, 0.28), 0.0, [1.5, -0.5, -0.5, -0.5]),
    ],
)
def test_rows_say_what_their_papers_say(
    name: str, aggregate: str, clips: tuple[float, float], kl_coef: float, advantages: list[float]
) -> None:
    row = TABLE[name]
    assert (row.aggregate, (row.clip_low, row.clip_high), row.kl_coef) == (aggregate, clips, kl_coef)
    assert row.advantage(torch.tensor([[1.0, 0, 0, 0]]), torch.ones(1, 4, dtype=torch.bool)).tolist() == [advantages]


@pytest.mark.parametrize("ref", ["./mine.py:MINE", "mine.py:MINE"])
def test_a_users_row_is_found_beside_the_recipe(folder: Path, ref: str) -> None:
    row = load_algorithm(ref, folder)
    assert (row.name, row.clip_low, row.clip_high) == ("mine", 0.2, 0.5)
    assert row.advantage(torch.tensor([[1.0, 2.0]]), torch.ones(1, 2, dtype=torch.bool)).tolist() == [[2.0, 4.0]]


@pytest.mark.parametrize(
    ("ref", "said"),
    [
        ("drgrpo", "did you mean 'dr_grpo'?"),
        ("zzz", "or write ./file.py:NAME"),
        ("./mine.py", "known are grpo, dr_grpo, dapo"),
        ("./other.py:MINE", "there is no file"),
        ("./mine.py:THEIRS", "found nothing of that name; write THEIRS = replace(GRPO, ...)"),
        ("./mine.py:NUMBER", "found a int"),
        ("./mine.py:longer_is_better", "found a function"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused_with_what_to_write(folder: Path, ref: str, said: str) -> None:
    with pytest.raises(ValueError, match="algorithm") as raised:
        load_algorithm(ref, folder)
    assert said in str(raised.value) and repr(ref) in str(raised.value)


R1 = dict(learning_rate=3e-6, prompts_per_step=512, samples_per_prompt=16, updates_per_rollout=16, temperature=1.0)


@pytest.mark.parametrize(
    ("name", "kl_coef", "clip", "published"),
    [
        # of 8,192 outputs 16 updates of 512; DeepSeekMath: a batch of 1,024 outputs, 64 to a question
        ("r1_zero", 0.001, 0.2, {**R1, "max_completion_tokens": 32768, "refresh_reference_every": 400}),
        ("r1_stage1", 0.001, 10.0, {**R1, "max_completion_tokens": 32768, "refresh_reference_every": 400}),
        ("r1_stage2", 0.001, 10.0, {**R1, "temperature": 0.7, "max_completion_tokens": 32768, "refresh_reference_every": 400}),
        (
            "deepseekmath",
            0.04,
            0.2,
            dict(learning_rate=1e-6, prompts_per_step=16, samples_per_prompt=64, updates_per_rollout=1, max_completion_tokens=1024),
        ),
    ],
)
def test_presets_have_the_papers_numbers(name: str, kl_coef: float, clip: float, published: dict[str, float]) -> None:
    row = TABLE[name]
    assert (row.kl_coef, row.clip_low, row.clip_high, dict(row.published)) == (kl_coef, clip, clip, published)
    assert published["prompts_per_step"] * published["samples_per_prompt"] in (8192, 1024)


def test_the_documentation_names_every_row() -> None:
    text = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text(encoding="utf-8")
    assert [name for name in TABLE if f"| {name} |" not in text and f"`{name}`" not in text] == []
