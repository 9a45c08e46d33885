"""The update against a slow oracle, whatever the split; the log-probabilities it is made of; what stops it."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from grpo.algorithm import GRPO, TABLE
from grpo.config import Lora, Trainer
from grpo.errors import TrainingError
from grpo.trainer.attention import ordinary_attention
from grpo.trainer.batch import Batch, make_batch
from grpo.trainer.policy_trainer import PolicyTrainer
from rollout.weight_sync.weights import unpack_weights
from tests.trainer.conftest import MakeTrainer

# Two prompts with three samples each. Rewards 1 0 0 and 2 0 1:
#   z-scores of the first: mean 1/3, deviation sqrt((4 + 1 + 1) / 9 / 2) = sqrt(1/3), so 2/sqrt(3) and -1/sqrt(3); of the second: 1 -1 0
PROMPTS = [(5, 6, 7), (8, 9)]
SAMPLES = [[(11, 12, 13), (14,), (15, 16, 17, 18)], [(21, 22), (23, 24, 25, 26, 27), (28, 29, 30)]]
ADVANTAGES = [2 / math.sqrt(3), -1 / math.sqrt(3), -1 / math.sqrt(3), 1.0, -1.0, 0.0]
FLAT = [(prompt, sample) for prompt, samples in zip(PROMPTS, SAMPLES, strict=True) for sample in samples]


def batch_of_six(advantages: Sequence[float] = ADVANTAGES, how: str = "sequence_mean") -> Batch:
    batch = make_batch([prompt for prompt, _ in FLAT], [sample for _, sample in FLAT], group=[0, 0, 0, 1, 1, 1], advantages=advantages)
    return batch.with_weights(how, max_tokens=8)


def weights_of(trainer: PolicyTrainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def steepest(trainer: PolicyTrainer) -> PolicyTrainer:
    """With plain gradient descent weights change by learning rate times gradient; Adam would make a sign of it, of rounding too."""
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters())
    return trainer


def gradient_after(trainer: PolicyTrainer, update: Callable[[], Any]) -> dict[str, torch.Tensor]:
    """What a steepest(trainer) with learning rate 1 took off its weights."""
    before = weights_of(trainer)
    update()
    return {name: before[name] - after for name, after in weights_of(trainer).items()}


# ---------------------------------------------------------------------------------------------------------------------- the objective


def oracle_loss(logits: dict[str, list[list[list[float]]]], advantages: list[float], temperature: float, clip: float, beta: float) -> float:
    """DeepSeekMath eq. 3 as it stands in the paper, number by number; logits[which][i] are those of sample i's completion tokens."""

    def logprob(which: str, i: int, t: int) -> float:
        scaled = [logit / temperature for logit in logits[which][i][t]]
        top = max(scaled)
        return scaled[FLAT[i][1][t]] - top - math.log(math.fsum(math.exp(logit - top) for logit in scaled))

    objective = 0.0
    for i, (_, sample) in enumerate(FLAT):
        of_sample = 0.0
        for t in range(len(sample)):
            now, old, reference = (logprob(which, i, t) for which in ("now", "old", "reference"))
            ratio = math.exp(now - old)
            clipped = min(max(ratio, 1 - clip), 1 + clip)
            divergence = math.exp(reference - now) - (reference - now) - 1
            of_sample += min(ratio * advantages[i], clipped * advantages[i]) - beta * divergence
        objective += of_sample / len(sample) / len(FLAT)
    return -objective


def completion_logits(model: Any) -> list[list[list[float]]]:
    with torch.no_grad(), ordinary_attention(model):
        return [model(torch.tensor([[*p, *s]], device=model.device)).logits[0, len(p) - 1 : -1].tolist() for p, s in FLAT]


def drifted(make_trainer: Callable[..., PolicyTrainer], **settings: Any) -> tuple[PolicyTrainer, Batch, dict[str, Any]]:
    """A trainer whose policy has left its reference, then the rollout's policy: ratios on both sides of the clip, divergence above 0."""
    trainer = steepest(make_trainer(replace(GRPO, kl_coef=0.1), learning_rate=1.0, max_grad_norm=0.5, **settings))
    reference = completion_logits(trainer.model)
    trainer.policy_update(batch_of_six(advantages=[0.5, 1.0, -0.5, -1.0, 0.5, 1.0]))
    batch, old = trainer.with_old_logprobs(batch_of_six()), completion_logits(trainer.model)
    trainer.policy_update(batch)
    return trainer, batch, {"reference": reference, "old": old, "now": completion_logits(trainer.model)}


def test_the_loss_is_the_papers_to_the_last_sum(make_trainer: Callable[..., PolicyTrainer]) -> None:
    trainer, batch, logits = drifted(make_trainer, temperature=0.7)
    metrics = trainer.policy_update(batch)
    assert metrics["loss/total"] == pytest.approx(oracle_loss(logits, ADVANTAGES, temperature=0.7, clip=0.2, beta=0.1), rel=1e-5)
    without = oracle_loss(logits, ADVANTAGES, temperature=0.7, clip=math.inf, beta=0.0)
    assert abs(metrics["loss/total"] - without) > 0.01, "neither clip nor divergence plays a part in this test"
    assert 0 < metrics["loss/clipped_frac"] < 1 and metrics["loss/kl"] > 0.01


def test_the_gradient_is_that_of_the_formula_in_plain_rows(
    make_trainer: Callable[..., PolicyTrainer], plain_logprobs: Callable[..., torch.Tensor]
) -> None:
    trainer, batch, _ = drifted(make_trainer, temperature=0.7)
    trainer.spec = replace(trainer.spec, optimizer=trainer.spec.optimizer.model_copy(update={"max_grad_norm": 1e9}))
    old = [batch.old_logprobs[i][batch.loss_mask[i]] for i in range(6)]
    loss = torch.zeros((), dtype=torch.float64)
    for i, (prompt, sample) in enumerate(FLAT):
        now = plain_logprobs(trainer.model, prompt, sample, 0.7)
        log_ratio = plain_logprobs(trainer.reference, prompt, sample, 0.7).detach() - now
        ratio = (now - torch.from_numpy(old[i]).double()).exp()
        surrogate = torch.min(ratio * ADVANTAGES[i], ratio.clamp(0.8, 1.2) * ADVANTAGES[i])
        loss = loss - (surrogate - 0.1 * (log_ratio.exp() - log_ratio - 1)).mean() / 6
    expected = dict(zip(weights_of(trainer), torch.autograd.grad(loss, list(trainer.model.parameters())), strict=True))
    found = gradient_after(trainer, lambda: trainer.policy_update(batch))
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * largest, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("max_tokens_per_micro_batch", [13, 7])
@pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo", "dapo"])
def test_micro_batching_changes_nothing(
    make_trainer: Callable[..., PolicyTrainer], algorithm: str, max_tokens_per_micro_batch: int
) -> None:
    # Both groups in one pass; one group a pass (11 and 12 tokens); groups in pieces, samples of unequal length apart.
    row = TABLE[algorithm]
    whole = steepest(make_trainer(row, learning_rate=1.0, max_grad_norm=1e9))
    split = steepest(make_trainer(row, learning_rate=1.0, max_grad_norm=1e9, max_tokens_per_micro_batch=max_tokens_per_micro_batch))
    batch = batch_of_six(how=row.aggregate)
    metrics: list[dict[str, float]] = []
    expected, found = (gradient_after(trainer, lambda t=trainer: metrics.append(t.policy_update(batch))) for trainer in (whole, split))
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-5, abs=1e-7, nan_ok=True)
    assert metrics[0]["train/grad_norm"] > 0.1
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("updates_old_first", [False, True])
def test_samples_without_advantage_are_not_computed_and_change_nothing(
    make_trainer: Callable[..., PolicyTrainer], monkeypatch: pytest.MonkeyPatch, updates_old_first: bool
) -> None:
    # The second prompt's samples are all alike, and with no divergence in the loss their terms are 0 x ratio.
    row, advantages = replace(GRPO, kl_coef=0.0), [*ADVANTAGES[:3], 0.0, 0.0, 0.0]
    tokens: list[int] = []

    def run() -> dict[str, torch.Tensor]:
        trainer = steepest(make_trainer(row, learning_rate=1.0, max_grad_norm=1e9))
        passes = trainer._passes
        monkeypatch.setattr(trainer, "_passes", lambda batch: [tokens.append(len(p.tokens)) or p for p in passes(batch)])
        batch = batch_of_six(advantages)
        return gradient_after(trainer, lambda: trainer.policy_update(trainer.with_old_logprobs(batch) if updates_old_first else batch))

    found = run()
    assert set(tokens) == {3 + 3 + 1 + 4}  # the first prompt and its three samples, whenever a pass is made
    monkeypatch.setattr(PolicyTrainer, "_contributing", lambda self, batch: batch)
    for name, gradient in run().items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-12)


def test_the_gap_is_watched_even_where_no_sample_has_an_advantage(make_trainer: Callable[..., PolicyTrainer]) -> None:
    trainer = make_trainer(replace(GRPO, kl_coef=0.0))
    batch = batch_of_six([0.0] * 6)
    wrong = replace(batch, sampled_logprobs=np.where(batch.loss_mask, -40.0, np.nan).astype(np.float32))
    with pytest.raises(TrainingError, match="engine and trainer disagree"):
        trainer.policy_update(wrong, max_logprob_gap=0.1)
    assert weights_of(trainer).keys() and trainer.num_updates == 0


@pytest.mark.parametrize("masked", [[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]])
def test_samples_with_advantage_but_without_tokens_are_left_out_and_raise_no_alarm(
    make_trainer: Callable[..., PolicyTrainer], masked: list[int]
) -> None:
    # Truncated samples are masked whole. First all that have an advantage, then a whole group: 3, then 2 + 5 + 3 tokens count.
    trainer = make_trainer(replace(GRPO, kl_coef=0.0))
    batch = batch_of_six()
    batch = replace(batch, sampled_logprobs=trainer.logprobs(batch)).without_tokens_of(np.array(masked, dtype=bool))
    metrics = trainer.policy_update(batch.with_weights("sequence_mean", 8), max_logprob_gap=1e-6)
    assert metrics["rollout/logprob_gap"] == pytest.approx(0.0, abs=1e-9) and metrics["train/skipped_updates"] == 0.0


def test_a_minibatch_without_tokens_keeps_its_place_among_several(make_trainer: Callable[..., PolicyTrainer]) -> None:
    trainer = make_trainer()
    batch = trainer.with_old_logprobs(batch_of_six().without_tokens_of(np.ones(6, dtype=bool)), max_logprob_gap=0.01)
    assert trainer.policy_update(batch, max_logprob_gap=0.01)["train/empty_updates"] == 1.0 and trainer.num_updates == 1


def test_checkpointed_layers_give_the_same_gradient(make_trainer: Callable[..., PolicyTrainer]) -> None:
    plain, again = (steepest(make_trainer(learning_rate=1.0, max_grad_norm=1e9, gradient_checkpointing=on)) for on in (False, True))
    num_forward = {"plain": 0, "again": 0}
    for name, trainer in (("plain", plain), ("again", again)):
        layer = trainer.model.model.layers[0].self_attn
        layer.register_forward_hook(lambda *_, name=name: num_forward.update({name: num_forward[name] + 1}))
    expected, found = (gradient_after(trainer, lambda t=trainer: t.policy_update(batch_of_six())) for trainer in (plain, again))
    assert num_forward == {"plain": 1, "again": 2}
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_compiled_layers_give_the_same_gradient(make_trainer: Callable[..., PolicyTrainer]) -> None:
    plain, fused = (
        steepest(make_trainer(learning_rate=1.0, max_grad_norm=1e9, exact=False, layout=Trainer(compile=on))) for on in (False, True)
    )
    assert not any(module._compiled_call_impl for module in plain.model.modules())
    assert sum(module._compiled_call_impl is not None for module in fused.model.modules()) == 3 * len(plain.model.model.layers) + 1
    expected, found = (gradient_after(trainer, lambda t=trainer: t.policy_update(batch_of_six())) for trainer in (plain, fused))
    difference = torch.cat([(found[name] - expected[name]).flatten() for name in expected]).norm()
    assert difference < 0.02 * torch.cat([gradient.flatten() for gradient in expected.values()]).norm()  # of bfloat16's rounding, 0.004


def test_an_on_policy_update_is_a_policy_gradient(make_trainer: Callable[..., PolicyTrainer]) -> None:
    # Ratios are 1: nothing is clipped, the policy is its own reference, and the loss is minus the mean advantage: 0 over whole groups.
    metrics = make_trainer().policy_update(batch_of_six())
    assert metrics["loss/clipped_frac"] == 0.0 and metrics["loss/kl"] == 0.0
    assert metrics["loss/total"] == pytest.approx(0.0, abs=1e-7) and metrics["train/grad_norm"] > 0.1


def test_fixed_old_log_probs_equal_those_of_the_first_update(make_trainer: Callable[..., PolicyTrainer]) -> None:
    one, other = make_trainer(learning_rate=1e-3), make_trainer(learning_rate=1e-3)
    one.policy_update(batch_of_six())
    metrics = other.policy_update(other.with_old_logprobs(batch_of_six()))
    assert metrics["loss/clipped_frac"] == 0.0
    for name, weight in weights_of(one).items():
        torch.testing.assert_close(weights_of(other)[name], weight, rtol=1e-5, atol=1e-6)


def test_samples_with_positive_advantage_become_likelier(make_trainer: Callable[..., PolicyTrainer]) -> None:
    trainer = make_trainer(TABLE["dr_grpo"], learning_rate=1e-3)
    batch = batch_of_six(how="constant")
    before = np.nansum(trainer.logprobs(batch), axis=1)
    trainer.policy_update(batch)
    change = np.nansum(trainer.logprobs(batch), axis=1) - before
    assert change[0] > 0 and change[3] > 0 and change[4] < 0


def test_entropy_is_the_mean_over_completion_tokens(make_trainer: Callable[..., PolicyTrainer]) -> None:
    trainer = make_trainer(temperature=0.7)
    probabilities = (torch.tensor([row for rows in completion_logits(trainer.model) for row in rows]).double() / 0.7).softmax(-1)
    expected = -(probabilities * probabilities.log()).sum(-1).mean().item()
    assert trainer.policy_update(batch_of_six())["policy/entropy"] == pytest.approx(expected, rel=1e-5)


def test_a_refreshed_reference_is_the_policy(make_trainer: Callable[..., PolicyTrainer]) -> None:
    trainer = make_trainer(learning_rate=1e-3)
    trainer.policy_update(batch_of_six())
    assert trainer.policy_update(batch_of_six())["loss/kl"] > 1e-4
    trainer.refresh_reference()
    assert trainer.policy_update(batch_of_six())["loss/kl"] == 0.0


def test_no_reference_is_kept_where_its_coefficient_is_zero(make_trainer: Callable[..., PolicyTrainer]) -> None:
    assert make_trainer(replace(GRPO, kl_coef=0.0)).reference is None


# ------------------------------------------------------------------------------------------------------------------- log-probabilities


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_at_the_sampling_temperature(
    make_trainer: Callable[..., PolicyTrainer], plain_logprobs: Callable[..., torch.Tensor], temperature: float
) -> None:
    trainer = make_trainer(temperature=temperature)
    found = trainer.logprobs(batch_of_six())
    for i, (prompt, sample) in enumerate(FLAT):
        expected = plain_logprobs(trainer.model, prompt, sample, temperature).detach().numpy()
        np.testing.assert_allclose(found[i, len(prompt) : len(prompt) + len(sample)], expected, rtol=1e-5)
    assert (~np.isnan(found)).sum() == 18  # and NaN everywhere else: 3 + 1 + 4 + 2 + 5 + 3 completion tokens


def test_bfloat16_stays_near_the_exact_log_probs(make_trainer: Callable[..., PolicyTrainer]) -> None:
    # bfloat16 has 8 bits, so logits of about 5 are rounded by about 5 / 2^9 = 0.01, and so is what leads to them
    exact, rounded = make_trainer().logprobs(batch_of_six()), make_trainer(exact=False).logprobs(batch_of_six())
    assert 0 < np.nanmean(np.abs(exact - rounded)) < 0.05


def test_the_gap_is_the_mean_difference_a_token(make_trainer: Callable[..., PolicyTrainer]) -> None:
    # The engine is said to be 0.5 higher on the first sample's 3 tokens and right on the other 15: 1.5 / 18.
    trainer = make_trainer()
    logprobs = trainer.logprobs(batch_of_six())
    batch = replace(batch_of_six(), sampled_logprobs=logprobs + np.array([0.5, 0, 0, 0, 0, 0], dtype=np.float32)[:, None])
    assert trainer.logprob_gap(batch) == pytest.approx(1.5 / 18, rel=1e-4)
    assert trainer.policy_update(batch)["rollout/logprob_gap"] == pytest.approx(1.5 / 18, rel=1e-4)


@pytest.mark.parametrize("fixed", [False, True])
def test_a_gap_above_the_bound_stops_before_any_weight_changes(make_trainer: Callable[..., PolicyTrainer], fixed: bool) -> None:
    trainer, untouched = make_trainer(learning_rate=1e-3), make_trainer(learning_rate=1e-3)
    before = weights_of(trainer)
    batch = replace(batch_of_six(), sampled_logprobs=trainer.logprobs(batch_of_six()) + 0.25)
    with pytest.raises(TrainingError, match=r"the mean absolute log-prob difference is 0.2500 a token, the bound 0.2000"):
        trainer.with_old_logprobs(batch, 0.2) if fixed else trainer.policy_update(batch, 0.2)
    assert trainer.num_updates == 0 and all(torch.equal(weight, before[name]) for name, weight in weights_of(trainer).items())
    # and nothing of the refused batch is left in the next update's gradient
    trainer.policy_update(batch, 0.3)
    untouched.policy_update(batch)
    assert all(torch.equal(weight, weights_of(untouched)[name]) for name, weight in weights_of(trainer).items())


@pytest.mark.parametrize(("name", "value"), [("grpo", math.nan), ("grpo", -math.inf), ("gspo", math.nan)])
def test_a_token_whose_log_probability_is_not_finite_is_left_out_of_the_loss(
    make_trainer: Callable[..., PolicyTrainer], monkeypatch: pytest.MonkeyPatch, name: str, value: float
) -> None:
    odd, without = make_trainer(TABLE[name], learning_rate=1e-3), make_trainer(TABLE[name], learning_rate=1e-3)
    batch = batch_of_six()
    column = len(FLAT[0][0])  # the first token of the first sample's completion
    logprobs = odd._logprobs

    def with_odd_one(packed: Any, of: Any = None) -> Any:
        known, entropy = logprobs(packed, of)
        there = torch.from_numpy((packed.sample == 0) & (packed.column == column))
        return known.masked_fill(there, value), entropy.masked_fill(there, value)

    monkeypatch.setattr(odd, "_logprobs", with_odd_one)
    metrics = odd.policy_update(batch)
    assert metrics["train/nonfinite_logprobs"] == 1 and metrics["train/skipped_updates"] == 0
    assert all(
        math.isfinite(metrics[each]) for each in ("loss/total", "loss/kl", "policy/entropy", "train/grad_norm", "rollout/importance_max")
    )
    if name == "grpo":  # token by token, it is as if the token had no weight
        weights = batch.weights.copy()
        weights[0, column] = 0.0
        assert metrics["loss/total"] == pytest.approx(without.policy_update(replace(batch, weights=weights))["loss/total"])
        for key, weight in weights_of(without).items():
            torch.testing.assert_close(weights_of(odd)[key], weight)


def test_old_log_probabilities_that_are_not_finite_count_for_their_own_tokens_only(make_trainer: Callable[..., PolicyTrainer]) -> None:
    trainer = make_trainer()
    batch = trainer.with_old_logprobs(batch_of_six())
    moved = replace(batch, old_logprobs=batch.old_logprobs - 1.0)  # every ratio is e, far outside of the trust region
    clipped = trainer.policy_update(moved)["loss/clipped_frac"]
    assert clipped > 0
    old = moved.old_logprobs.copy()
    old[0, len(FLAT[0][0])] = math.nan
    assert trainer.policy_update(replace(moved, old_logprobs=old))["loss/clipped_frac"] == pytest.approx(clipped, abs=1 / 18 + 1e-9)


# ------------------------------------------------------------------------------------------------------------------------------ steps


def test_a_gradient_that_is_not_finite_is_skipped_and_three_in_a_row_stop_the_run(make_trainer: Callable[..., PolicyTrainer]) -> None:
    trainer = make_trainer(learning_rate=1e-3, warmup_updates=10)
    bad, good = batch_of_six(advantages=[math.inf] * 6), batch_of_six()
    before = weights_of(trainer)
    assert [trainer.policy_update(bad)["train/skipped_updates"] for _ in range(2)] == [1.0, 1.0]
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(trainer).items())
    metrics = trainer.policy_update(good)
    assert metrics["train/skipped_updates"] == 0.0
    assert metrics["train/learning_rate"] == pytest.approx(3e-4)  # the third of ten, all the same
    assert all(torch.isfinite(weight).all() for weight in weights_of(trainer).values())
    trainer.policy_update(bad)
    trainer.policy_update(bad)
    with pytest.raises(TrainingError, match="not finite in 3 updates in a row, the last being update 6"):
        trainer.policy_update(bad)


def test_learning_rates_follow_the_schedule_into_the_optimizer(make_trainer: Callable[..., PolicyTrainer]) -> None:
    trainer = make_trainer(total_updates=4, learning_rate=8e-4, warmup_updates=2, lr_schedule="linear")
    reported = [trainer.policy_update(batch_of_six())["train/learning_rate"] for _ in range(4)]
    assert reported == pytest.approx([4e-4, 8e-4, 8e-4, 4e-4])
    assert all(group["lr"] == pytest.approx(4e-4) for group in trainer.optimizer.param_groups)


def test_gradients_are_clipped_to_their_norm(make_trainer: Callable[..., PolicyTrainer]) -> None:
    trainer = steepest(make_trainer(learning_rate=1.0, max_grad_norm=0.01))
    taken = gradient_after(trainer, lambda: trainer.policy_update(batch_of_six()))
    assert math.sqrt(sum(gradient.square().sum().item() for gradient in taken.values())) == pytest.approx(0.01, rel=1e-3)


def test_supervised_loss_is_cross_entropy_of_the_completions(
    make_trainer: Callable[..., PolicyTrainer], plain_logprobs: Callable[..., torch.Tensor]
) -> None:
    trainer = make_trainer(None, learning_rate=1e-3)
    batch = batch_of_six(how="token_mean")
    expected = -torch.cat([plain_logprobs(trainer.model, prompt, sample) for prompt, sample in FLAT]).mean().item()
    metrics = trainer.supervised_update(batch)
    assert metrics["loss/total"] == pytest.approx(expected, rel=1e-5) and metrics["train/tokens"] == 18
    assert trainer.supervised_update(batch)["loss/total"] < expected


# ------------------------------------------------------------------------------------------------------------------------ handing out


def test_exported_weights_are_the_checkpoints(make_trainer: Callable[..., PolicyTrainer], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    trainer = make_trainer(exact=False)
    trainer.policy_update(batch_of_six())
    trainer.save(tmp_path)
    exported, saved = unpack_weights(trainer.export_weights(version=3)), load_file(tmp_path / "model.safetensors")
    assert exported.keys() == saved.keys()  # the tied output layer once
    assert all(torch.equal(exported[name], saved[name]) for name in saved)


def test_an_export_stays_as_it_was_when_training_goes_on(make_trainer: Callable[..., PolicyTrainer]) -> None:
    trainer = make_trainer(exact=False, learning_rate=1e-2)
    before = weights_of(trainer)
    update = trainer.export_weights(version=1, dtype="float32")  # the dtype of the weights themselves: nothing needs a cast
    trainer.policy_update(batch_of_six())
    received = unpack_weights(update)
    assert all(torch.equal(received[name], weight) for name, weight in before.items())


def test_a_saved_model_is_an_ordinary_folder(make_trainer: Callable[..., PolicyTrainer], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trainer = make_trainer(exact=False)
    trainer.save(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).to(trainer.device)
    for parameter in trainer.model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    tokens = AutoTokenizer.from_pretrained(tmp_path)("3 + 4", return_tensors="pt").input_ids.to(trainer.device)
    with torch.no_grad(), ordinary_attention(trainer.model):
        torch.testing.assert_close(loaded(tokens).logits, trainer.model(tokens).logits)


@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["all", "lora"])
def test_a_sleeping_trainer_leaves_nothing_on_its_device(make_trainer: MakeTrainer, lora: Lora | None) -> None:
    """A type stands for the GPU, to which tensors are moved by the same calls: those that come not have been forgotten."""
    trainer = make_trainer(replace(GRPO, kl_coef=0.1), exact=False, lora=lora, learning_rate=1e-2)
    if lora is None:
        trainer.hold_weights(batch_of_six(), coef=1.0)
    trainer.policy_update(batch_of_six())
    before = trainer.logprobs(batch_of_six())
    trainer.sleep()
    trainer.wake()
    np.testing.assert_array_equal(trainer.logprobs(batch_of_six()), before)
    trainer.device = torch.float64  # type: ignore[assignment]
    trainer.wake()
    found = [tensor for tensor in tensors_within(trainer) if tensor.is_floating_point()]
    assert len(found) > 60 and {tensor.dtype for tensor in found} == {torch.float64}


def tensors_within(root: object) -> list[torch.Tensor]:
    """Every tensor of more than one number that can be reached from an object through attributes and collections."""
    found: dict[int, torch.Tensor] = {}
    seen: set[int] = set()
    ahead = [root]
    while ahead:
        each = ahead.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, torch.Tensor):
            if each.numel() > 1:
                found[id(each)] = each
            continue
        if isinstance(each, Mapping):
            ahead += [*each.keys(), *each.values()]
        elif isinstance(each, list | tuple | set):
            ahead += each
        elif hasattr(each, "__dict__") and not isinstance(each, type | types.ModuleType):
            ahead += vars(each).values()
    return list(found.values())


@pytest.mark.gpu
def test_a_sleeping_trainer_gives_its_memory_back_and_goes_on_as_if_it_had_not_slept(make_trainer: MakeTrainer) -> None:
    rested, undisturbed = (make_trainer(replace(GRPO, kl_coef=0.1), exact=False, learning_rate=1e-2) for _ in range(2))
    for _ in range(3):
        found = rested.policy_update(batch_of_six())
        assert found == undisturbed.policy_update(batch_of_six())
        awake = torch.cuda.memory_allocated()
        rested.sleep()
        assert torch.cuda.memory_allocated() < 0.6 * awake
        rested.wake()


@pytest.mark.parametrize("row", ["grpo", "dual_clip", "cispo"])
def test_clipped_frac_counts_the_tokens_whose_gradient_a_bound_changes(make_trainer: MakeTrainer, row: str) -> None:
    """Ratios 4.5, 2, 0.5 and 7 in the first prompt's good sample and in its bad one; those of the second prompt's are 1."""
    ratios = [4.5, 2.0, 0.5, 7.0]
    samples = [(11, 12, 13, 14), (15, 16, 17, 18), (21, 22), (23, 24)]
    batch = make_batch([(5, 6)] * 2 + [(8, 9)] * 2, samples, group=[0, 0, 1, 1], advantages=[1.0, -1.0, 1.0, -1.0])
    batch = batch.with_weights("token_mean", max_tokens=4)
    trainer = make_trainer(replace(TABLE[row], kl_coef=0.0), exact=True)
    old = trainer.logprobs(batch)
    old[:2, 2:6] -= np.log(ratios)
    clipped = {  # of the good: 4.5, 2 and 7 above 1.2; of the bad: 0.5 below 0.8, and for dual_clip 4.5 and 7 beyond 3
        "grpo": 3 + 1,
        "dual_clip": 3 + 3,
        "cispo": 1 + 1,  # 7 is above 5, whichever the advantage's sign
    }
    assert trainer.policy_update(replace(batch, old_logprobs=old))["loss/clipped_frac"] == pytest.approx(clipped[row] / 12)


def test_a_divergence_leaves_out_tokens_that_are_not_finite(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(replace(GRPO, kl_in="reward", kl_coef=0.1))
    batch = batch_of_six()
    policy, reference = trainer.logprobs(batch), trainer.logprobs(batch, of_reference=True) - 0.5
    policy[0, 4], policy[1, 3] = -math.inf, math.nan
    monkeypatch.setattr(trainer, "logprobs", lambda _, of_reference=False: reference if of_reference else policy)
    lengths = np.array([len(sample) for _, sample in FLAT])
    assert trainer.sequence_divergence(batch) == pytest.approx(0.5 * (lengths - [1, 1, 0, 0, 0, 0]), abs=1e-5)
