"""The gradient of an optimizer batch is one thing, however it is computed: split, packed, ordered, accumulated. In float64, to 1e-10.

Old log-probabilities that were stored under one split serve any other: the ratio of the first minibatch is 1 to 1e-12.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grpo.algorithm import TABLE
from grpo.trainer import attention, head, packing
from grpo.trainer.batch import Batch, make_batch
from grpo.trainer.policy_trainer import PolicyTrainer

ROWS = ["grpo", "dr_grpo", "dapo", "gspo", "cispo", "reinforce_pp"]
groups_of_lengths = st.lists(st.tuples(st.integers(1, 6), st.lists(st.integers(1, 9), min_size=1, max_size=4)), min_size=1, max_size=3)
PROPERTY = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def batch_with(shapes: list[tuple[int, list[int]]], seed: int, how: str) -> Batch:
    rng = np.random.default_rng(seed)
    flat = [(number, length) for number, (_, lengths) in enumerate(shapes) for length in lengths]
    prompts = [rng.integers(0, 250, prompt).tolist() for prompt, _ in shapes]
    completions = [rng.integers(0, 250, length).tolist() for _, length in flat]
    batch = make_batch(
        [prompts[number] for number, _ in flat],
        completions,
        group=[number for number, _ in flat],
        advantages=rng.normal(size=len(flat)),
        sampled_logprobs=[rng.normal(-6, 1, length).tolist() for _, length in flat],
    )
    return batch.with_weights(how, max_tokens=9)


def off_policy(trainer: PolicyTrainer, batch: Batch, seed: int) -> Batch:
    """Ratios of 0.6 to 1.6: some clipped, most not."""
    noise = np.random.default_rng(seed).normal(0, 0.15, batch.tokens.shape)
    return replace(batch, old_logprobs=trainer.logprobs(batch) + noise)


def gradient(trainer: PolicyTrainer, batch: Batch) -> torch.Tensor:
    """Of policy_update, flat: plain descent with rate 1 moves the weights by it."""
    state = copy.deepcopy(trainer.model.state_dict())
    before = torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters())
    trainer.policy_update(batch)
    after = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    trainer.model.load_state_dict(state)
    return before - after


def trainer_of(make_trainer: Callable[..., PolicyTrainer], row: str, **more: Any) -> PolicyTrainer:
    return make_trainer(TABLE[row], temperature=0.8, learning_rate=1.0, max_grad_norm=1e9, **more)


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).norm().item() <= 1e-10 * expected.norm().item()


@pytest.mark.parametrize("row", ROWS)
def test_any_split_packing_and_order_give_the_same_gradient(make_trainer: Callable[..., PolicyTrainer], row: str) -> None:
    trainers = {budget: trainer_of(make_trainer, row, max_tokens_per_micro_batch=budget) for budget in (15, 40, 10**6)}

    @PROPERTY
    @given(
        shapes=groups_of_lengths,
        seed=st.integers(0, 99),
        budget=st.sampled_from([15, 40]),
        scores=st.sampled_from([1, 30, 2**16]),
        one_product=st.booleans(),
    )
    def holds(shapes: list[tuple[int, list[int]]], seed: int, budget: int, scores: int, one_product: bool) -> None:
        batch = off_policy(trainers[10**6], batch_with(shapes, seed, TABLE[row].aggregate), seed)
        expected = gradient(trainers[10**6], batch)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(packing, "SCORES_PER_BLOCK", scores)
            patch.setattr(attention, "MAX_SCORES", 2**24 if one_product else 1)
            patch.setattr(head, "LOGITS_PER_PRODUCT", 2**25 if one_product else 1)
            patch.setattr(head, "MAX_KEPT_LOGITS", 2**27 if one_product else 0)
            order = np.random.default_rng(seed).permutation(len(batch))
            same(gradient(trainers[budget], batch.take(order)), expected)

    holds()


@pytest.mark.parametrize("row", ROWS)
def test_parts_of_a_batch_add_up(make_trainer: Callable[..., PolicyTrainer], row: str) -> None:
    # What ranks and accumulation rest on: weights belong to the whole batch, so the gradients of its parts sum to its own.
    trainer = trainer_of(make_trainer, row)

    @PROPERTY
    @given(shapes=groups_of_lengths, seed=st.integers(0, 99), data=st.data())
    def holds(shapes: list[tuple[int, list[int]]], seed: int, data: st.DataObject) -> None:
        batch = off_policy(trainer, batch_with(shapes, seed, TABLE[row].aggregate), seed)
        part = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(batch), max_size=len(batch))))
        parts = [gradient(trainer, batch.take(part == number)) for number in range(3) if (part == number).any()]
        same(torch.stack(parts).sum(0), gradient(trainer, batch))

    holds()


@pytest.mark.parametrize("row", ["grpo", "gspo"])
def test_old_log_probs_stored_under_another_split_give_a_ratio_of_one(make_trainer: Callable[..., PolicyTrainer], row: str) -> None:
    # Two updates a rollout: old log-probabilities are computed for the whole rollout, the first update sees half of it.
    small, large = (trainer_of(make_trainer, row, max_tokens_per_micro_batch=budget) for budget in (15, 10**6))

    @PROPERTY
    @given(shapes=groups_of_lengths, seed=st.integers(0, 99))
    def holds(shapes: list[tuple[int, list[int]]], seed: int) -> None:
        rollout = small.with_old_logprobs(batch_with(shapes, seed, "sequence_mean"))
        half = rollout.take(rollout.group % 2 == 0)
        log_ratio = large.logprobs(half) - half.old_logprobs
        assert np.nanmax(np.abs(np.expm1(log_ratio))) < 1e-12
        metrics = large.policy_update(half.with_weights("sequence_mean", 9))
        assert metrics["loss/clipped_frac"] == 0.0
        large.model.load_state_dict(small.model.state_dict())

    holds()
