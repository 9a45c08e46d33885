"""Every row of the table against a slow oracle: loops over samples and tokens, in float64, sharing no code with the trainer.

The oracle knows each algorithm from its paper (PAPERS below), not from the table; log-probabilities come from transformers' own forward pass
over one sequence at a time, and the gradient from differentiating the loops.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from grpo.algorithm import GRPO, TABLE
from grpo.resources.scoring import group_advantages
from grpo.trainer.attention import ordinary_attention
from grpo.trainer.batch import batch_of_groups
from grpo.trainer.policy_trainer import PolicyTrainer
from grpo.types import Group, Sample
from rollout.types import Completion, Prompt

TEMPERATURE, MAX_TOKENS = 0.7, 8
PROMPTS = [(5, 6, 7), (8, 9), (31, 32, 33, 34)]
COMPLETIONS = [
    [(11, 12, 13), (14,), (15, 16, 17, 18)],
    [(21, 22), (23, 24, 25, 26, 27), (28, 29, 30)],
    [(40, 41), (42, 43, 44, 45, 46, 47, 48, 49), (50,)],  # the second of them reached the limit
]
# Two rewards with weights 1 and 0.5; the last group's are equal; one sample could not be judged.
MATH = [[1.0, 0.0, 0.0], [0.0, 1.0, None], [1.0, 1.0, 1.0]]
FORMAT = [[1.0, 1.0, 0.0], [0.0, 1.0, None], [0.5, 0.5, 0.5]]
WEIGHTS = {"math": 1.0, "format": 0.5}
JUDGED = [(i, j) for i in range(3) for j in range(3) if MATH[i][j] is not None]

# advantage, level of the ratio, (clip low, clip high), kind of clip, aggregation, (divergence, where, coefficient)
PAPERS: dict[str, tuple[str, str, tuple[float, float], str, str, tuple[str, str, float]]] = {
    "grpo": ("zscore", "token", (0.2, 0.2), "ppo", "sequence", ("k3", "loss", 0.001)),
    "dr_grpo": ("centre", "token", (0.2, 0.2), "ppo", "constant", ("k3", "loss", 0.0)),
    "dapo": ("zscore", "token", (0.2, 0.28), "ppo", "token of unequal groups", ("k3", "loss", 0.0)),
    "gspo": ("zscore", "sequence", (3e-4, 4e-4), "ppo", "sequence", ("k3", "loss", 0.0)),
    "cispo": ("zscore", "token", (1.0, 4.0), "cispo", "token", ("k3", "loss", 0.0)),
    "dual_clip": ("zscore", "token", (0.2, 0.2), "dual", "sequence", ("k3", "loss", 0.001)),
    "rloo": ("leave one out", "token", (0.2, 0.2), "ppo", "constant", ("k1", "reward", 0.03)),
    "reinforce_pp": ("centre over batch", "token", (0.2, 0.2), "ppo", "token", ("k2", "loss", 0.001)),
    "gdpo": ("each reward", "token", (0.2, 0.2), "ppo", "sequence", ("k3", "loss", 0.001)),
    "grpo_unbiased_kl": ("zscore", "token", (0.2, 0.2), "ppo", "sequence", ("unbiased k3", "loss", 0.001)),
    "deepseekmath": ("zscore", "token", (0.2, 0.2), "ppo", "sequence", ("k3", "loss", 0.04)),
    "r1_zero": ("zscore", "token", (0.2, 0.2), "ppo", "sequence", ("k3", "loss", 0.001)),
    "r1_stage1": ("zscore", "token", (10.0, 10.0), "ppo", "sequence", ("k3", "loss", 0.001)),
    "r1_stage2": ("zscore", "token", (10.0, 10.0), "ppo", "sequence", ("k3", "loss", 0.001)),
}
Logprobs = dict[tuple[int, int], torch.Tensor]


def test_the_oracle_knows_every_row() -> None:
    assert PAPERS.keys() == TABLE.keys()


@pytest.mark.parametrize("importance", ["token", "sequence", None])
@pytest.mark.parametrize("name", TABLE)
def test_loss_and_gradient_are_the_papers(make_trainer: Callable[..., PolicyTrainer], name: str, importance: Any) -> None:
    compare(make_trainer, name, replace(TABLE[name], importance=importance, importance_cap=1.05))


@pytest.mark.parametrize("name", ["grpo", "dapo", "gspo", "reinforce_pp"])
def test_truncated_completions_can_be_left_out(make_trainer: Callable[..., PolicyTrainer], name: str) -> None:
    compare(make_trainer, name, replace(TABLE[name], mask_truncated=True, importance=None))


def test_the_table_corrects_for_the_engine_by_token_up_to_2() -> None:
    assert {(row.importance, row.importance_cap) for row in TABLE.values()} == {("token", 2.0)}


def compare(make_trainer: Callable[..., PolicyTrainer], name: str, row: Any) -> None:
    from grpo.stages.rl import RlLoop

    trainer = make_trainer(row, temperature=TEMPERATURE, learning_rate=1.0, max_grad_norm=1e9)
    reference, old, now = (moved(trainer.model, seed) for seed in (None, 1, 2))
    by_model = {which: logprobs_of(model) for which, model in (("reference", reference), ("old", old))}
    noise = np.random.default_rng(3)
    sampled = {key: value + torch.from_numpy(noise.normal(0, 0.1, len(value))) for key, value in by_model["old"].items()}
    now.zero_grad()
    of_now = logprobs_of(now, with_gradient=True)
    expected_loss = oracle(PAPERS[name], row, of_now, by_model["old"], by_model["reference"], sampled)
    expected_loss.backward()

    trainer.model.load_state_dict(now.state_dict())
    groups = groups_with(sampled)
    divergence = None
    if PAPERS[name][5][1] == "reward":
        divergence = np.zeros((3, 3))
        for i, j in JUDGED:
            divergence[i, j] = (by_model["old"][i, j] - by_model["reference"][i, j]).sum().item()
    advantages = group_advantages(row, groups, WEIGHTS, divergence)
    batch = batch_of_groups(groups, advantages.tolist())
    masking = type("Stub", (), {"algorithm": row})()
    batch = RlLoop.masked(masking, batch, groups).with_weights(row.aggregate, MAX_TOKENS)
    old_BT = np.full(batch.tokens.shape, np.nan)
    for b, (i, j) in enumerate(JUDGED):
        old_BT[b, len(PROMPTS[i]) : len(PROMPTS[i]) + len(COMPLETIONS[i][j])] = by_model["old"][i, j]
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters())
    before = {key: value.detach().clone() for key, value in trainer.model.named_parameters()}
    metrics = trainer.policy_update(replace(batch, old_logprobs=old_BT))

    assert metrics["loss/total"] == pytest.approx(expected_loss.item(), rel=1e-9, abs=1e-12)
    largest = max(parameter.grad.abs().max().item() for parameter in now.parameters())
    assert largest > 1e-3
    for (key, parameter), wanted in zip(trainer.model.named_parameters(), now.parameters(), strict=True):
        found = before[key] - parameter.detach()
        torch.testing.assert_close(found, wanted.grad, rtol=1e-7, atol=1e-10 * largest, msg=lambda text, key=key: f"{name}, {key}: {text}")


def oracle(paper: Any, row: Any, now: Logprobs, old: Logprobs, reference: Logprobs, sampled: Logprobs) -> torch.Tensor:
    how, level, (low, high), clip, aggregate, (divergence, where, coefficient) = paper
    taken = {
        key: coefficient * sum(float(old[key][t] - reference[key][t]) for t in range(len(old[key]))) if where == "reward" else 0.0
        for key in JUDGED
    }
    advantages = oracle_advantages(how, taken)
    counted = [key for key in JUDGED if not (row.mask_truncated and len(now[key]) == MAX_TOKENS)]
    if aggregate == "token of unequal groups":
        counted = [key for key in counted if key[0] != 2]
    total_tokens = sum(len(now[key]) for key in counted)
    loss = torch.zeros((), dtype=torch.float64)
    for key in counted:
        length = len(now[key])
        mean_log_ratio = sum(now[key][t] - old[key][t] for t in range(length)) / length
        drift = [math.exp(float(old[key][t] - sampled[key][t])) for t in range(length)]
        for t in range(length):
            ratio = torch.exp(mean_log_ratio if level == "sequence" else now[key][t] - old[key][t])
            a = advantages[key]
            bounded = min(max(ratio.item(), 1 - low), 1 + high)
            if clip == "cispo":
                objective = bounded * a * now[key][t] - bounded * a * old[key][t].item()
            else:
                objective = ratio * a if ratio.item() * a <= bounded * a else torch.tensor(bounded * a, dtype=torch.float64)
                if clip == "dual" and a < 0 and objective.item() < 3 * a:
                    objective = torch.tensor(3 * a, dtype=torch.float64)
            if row.importance == "token":
                objective = objective * min(drift[t], row.importance_cap)
            elif row.importance == "sequence":
                objective = objective * min(math.prod(drift), row.importance_cap)
            apart = reference[key][t] - now[key][t]
            kl = {"k1": -apart, "k2": apart * apart / 2, "k3": torch.exp(apart) - apart - 1}[divergence.split()[-1]]
            if divergence.startswith("unbiased"):
                kl = kl * torch.exp(now[key][t] - old[key][t])
            weight = {"sequence": 1 / (len(counted) * length), "constant": 1 / (len(counted) * MAX_TOKENS)}.get(aggregate, 1 / total_tokens)
            loss = loss - weight * (objective - (coefficient * kl if where == "loss" else 0.0))
    return loss


def oracle_advantages(how: str, taken: dict[tuple[int, int], float]) -> dict[tuple[int, int], float]:
    def of(value: Callable[[int, int], float], kind: str) -> dict[tuple[int, int], float]:
        found = {}
        for i in range(3):
            values = {j: value(i, j) for k, j in JUDGED if k == i}
            mean = sum(values.values()) / len(values)
            deviation = math.sqrt(sum((v - mean) ** 2 for v in values.values()) / (len(values) - 1))
            for j, v in values.items():
                if kind == "zscore":
                    found[i, j] = (v - mean) / deviation if deviation > 1e-12 else 0.0
                elif kind == "leave one out":
                    found[i, j] = v - (sum(values.values()) - v) / (len(values) - 1)
                else:
                    found[i, j] = v - mean
        return found

    def total(i: int, j: int) -> float:
        return MATH[i][j] + 0.5 * FORMAT[i][j] - taken[i, j]

    if how == "each reward":
        by_math, by_format = of(lambda i, j: MATH[i][j], "zscore"), of(lambda i, j: FORMAT[i][j], "zscore")
        found = {key: by_math[key] + 0.5 * by_format[key] for key in JUDGED}
    else:
        found = of(total, how)
    if how in ("each reward", "centre over batch"):
        deviation = math.sqrt(sum(a * a for a in found.values()) / (len(found) - 1))
        found = {key: a / deviation for key, a in found.items()}
    return found


def moved(model: Any, seed: int | None) -> Any:
    """A copy with noise on every weight: ratios on both sides of every clip, and away from the reference."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed or 0)
    with torch.no_grad():
        for parameter in other.parameters():
            if seed is not None:
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return other


def logprobs_of(model: Any, with_gradient: bool = False) -> Logprobs:
    found = {}
    with torch.set_grad_enabled(with_gradient), ordinary_attention(model):
        for i, j in JUDGED:
            tokens = torch.tensor([[*PROMPTS[i], *COMPLETIONS[i][j]]])
            logprobs = (model(tokens).logits[0] / TEMPERATURE).log_softmax(-1)
            start = len(PROMPTS[i])
            found[i, j] = torch.stack([logprobs[start - 1 + t, token] for t, token in enumerate(COMPLETIONS[i][j])])
    return found


def groups_with(sampled: Logprobs) -> list[Group]:
    groups = []
    for i, prompt in enumerate(PROMPTS):
        samples = []
        for j, tokens in enumerate(COMPLETIONS[i]):
            logprobs = tuple(sampled[i, j].tolist()) if (i, j) in sampled else (0.0,) * len(tokens)
            finish = "length" if len(tokens) == MAX_TOKENS else "stop"
            completion = Completion.of(
                tokens=tokens, logprobs=logprobs, trainable=(True,) * len(tokens), text="", finish=finish, versions=((0, 0),)
            )
            parts = {"math": MATH[i][j], "format": FORMAT[i][j]}
            judged = MATH[i][j] is not None
            samples.append(Sample(f"p{i}", completion, MATH[i][j] + 0.5 * FORMAT[i][j] if judged else None, parts))
        groups.append(Group(Prompt(f"p{i}", prompt), tuple(samples)))
    return groups


def test_ratios_of_this_test_lie_on_both_sides_of_every_clip(make_trainer: Callable[..., PolicyTrainer]) -> None:
    trainer = make_trainer(GRPO, temperature=TEMPERATURE)
    old, now = logprobs_of(moved(trainer.model, 1)), logprobs_of(moved(trainer.model, 2))
    ratios = torch.cat([(now[key] - old[key]).exp() for key in JUDGED])
    assert ratios.min() < 0.8 and ratios.max() > 5.0 and ((ratios > 0.8) & (ratios < 1.2)).any()
