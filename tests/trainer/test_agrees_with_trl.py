"""Where TRL computes the same objective, the gradient is the same: its GRPOTrainer's own loss, on padded rows, against ours, packed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from grpo.algorithm import TABLE
from grpo.trainer.attention import ordinary_attention
from grpo.trainer.policy_trainer import PolicyTrainer
from tests.trainer.test_invariance import batch_with, gradient, off_policy, trainer_of

SHAPES = [(3, [5, 2, 7]), (6, [4, 9, 1])]
ROWS = {  # TRL's names for the same rows; its cispo bounds the ratio itself, ours its distance from 1
    "grpo": dict(loss_type="grpo", epsilon=0.2, beta=0.04, use_bias_correction_kl=False),
    "grpo_unbiased_kl": dict(loss_type="grpo", epsilon=0.2, beta=0.04, use_bias_correction_kl=True),
    "dr_grpo": dict(loss_type="dr_grpo", epsilon=0.2),
    "dapo": dict(loss_type="dapo", epsilon=0.2, epsilon_high=0.28),
    "gspo": dict(loss_type="grpo", importance_sampling_level="sequence", epsilon=3e-4, epsilon_high=4e-4),
    "cispo": dict(loss_type="cispo", epsilon_high=1.0 + TABLE["cispo"].clip_high),
}


def padded(batch: Any, values_BT: np.ndarray, width: int) -> torch.Tensor:
    """What belongs to completion tokens, [B, width], zeros behind."""
    rows = np.zeros((len(batch), width))
    for b, (start, end) in enumerate(zip(batch.prompt_lengths, batch.lengths, strict=True)):
        rows[b, : end - start] = values_BT[b, start:end]
    return torch.from_numpy(rows)


def trl_gradient(trainer: PolicyTrainer, batch: Any, folder: Path, settings: dict[str, Any]) -> torch.Tensor:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    config = GRPOConfig(
        output_dir=str(folder),
        max_completion_length=9,
        temperature=0.8,
        use_cpu=True,
        bf16=False,
        report_to=[],
        per_device_train_batch_size=8,
        **settings,
    )
    with warnings.catch_warnings(), ordinary_attention(trainer.model):
        warnings.simplefilter("ignore")
        theirs = GRPOTrainer(
            model=trainer.model,
            reward_funcs=lambda completions, **_: [0.0],
            args=config,
            train_dataset=Dataset.from_list([{"prompt": "a"}] * 8),
        )
        trainer.model.eval()
        width, longest = int((batch.lengths - batch.prompt_lengths).max()), int(batch.prompt_lengths.max())
        prompts = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros_like(prompts)
        for b, length in enumerate(batch.prompt_lengths.tolist()):
            prompts[b, longest - length :] = torch.from_numpy(batch.tokens[b, :length])
            mask[b, longest - length :] = 1
        inputs = {
            "prompt_ids": prompts,
            "prompt_mask": mask,
            "completion_ids": padded(batch, batch.tokens.astype(float), width).long(),
            "completion_mask": padded(batch, batch.loss_mask.astype(float), width).long(),
            "advantages": torch.from_numpy(np.array([row[row != 0][0] if row.any() else 0.0 for row in batch.advantages])),
            "old_per_token_logps": padded(batch, batch.old_logprobs, width),
            "num_items_in_batch": torch.tensor(float(batch.loss_mask.sum())),
        }
        if settings.get("beta"):
            inputs["ref_per_token_logps"] = padded(batch, trainer.logprobs(batch, of_reference=True), width)
        loss = theirs._compute_loss(trainer.model, inputs)
        gradients = torch.autograd.grad(loss, list(trainer.model.parameters()))
    return torch.cat([g.flatten() for g in gradients])


@pytest.mark.parametrize("row", ROWS)
def test_the_gradient_is_trls(make_trainer: Callable[..., PolicyTrainer], row: str, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    trainer = trainer_of(make_trainer, row)
    if "beta" in ROWS[row]:
        trainer.spec = replace(trainer.spec, algorithm=replace(TABLE[row], kl_coef=0.04))
    with torch.no_grad():
        for parameter in trainer.model.parameters():  # away from the reference
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).double()
    batch = off_policy(trainer, batch_with(SHAPES, 2, TABLE[row].aggregate), seed=3)
    batch = replace(batch, sampled_logprobs=batch.old_logprobs)  # an engine without rounding of its own
    expected = trl_gradient(trainer, batch, tmp_path, ROWS[row])
    found = gradient(trainer, batch)
    assert (found - expected).norm() <= 1e-6 * expected.norm() and expected.norm() > 0
