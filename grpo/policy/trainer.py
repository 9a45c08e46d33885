"""The policy and its optimiser: score tokens, take an optimiser step, hand out weights."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from grpo.algorithm import Algorithm
from grpo.algorithm.losses import is_clipped
from grpo.config import Optimiser
from grpo.errors import TrainingError
from grpo.policy.attention import ATTENTION
from grpo.policy.batch import Batch
from grpo.policy.logprobs import completion_logprobs
from grpo.policy.packing import PackedPass, pack
from grpo.policy.proof import check_layout
from grpo.policy.schedule import learning_rate_at
from rollout.weights import WeightUpdate, pack_weights

MAX_SKIPPED_IN_A_ROW = 3


@dataclass(frozen=True)
class TrainerSpec:
    """What a trainer is made of. ``algorithm`` None makes a supervised one; no reference is kept where its coefficient is 0."""

    model: Path
    optimiser: Optimiser
    total_updates: int
    algorithm: Algorithm | None = None
    temperature: float = 1.0
    num_threads: int | None = None


class PolicyTrainer:
    """fp32 masters under bf16 autocast, AdamW, gradient clipping. One instance, one device."""

    def __init__(self, spec: TrainerSpec):
        if spec.num_threads:
            torch.set_num_threads(spec.num_threads)
        self.spec = spec
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = AutoModelForCausalLM.from_pretrained(spec.model, dtype=torch.float32, attn_implementation=ATTENTION)
        self.model: PreTrainedModel = model.to(self.device).eval()  # without dropout: the ratio compares one distribution with itself
        check_layout(self.model)
        self.reference = self._frozen_copy() if spec.algorithm is not None and spec.algorithm.kl_coef > 0 else None
        self.optimiser = self._adamw(spec.optimiser)
        self.num_updates = 0
        self._skipped_in_a_row = 0

    # ---------------------------------------------------------------------------------------------------------------- looking

    def logprobs(self, batch: Batch, *, of_reference: bool = False) -> np.ndarray:
        """Log-probability of each completion token at the sampling temperature, [B, T], NaN elsewhere. No gradient."""
        model = self.reference if of_reference else self.model
        assert model is not None
        logprobs_BT = np.full(batch.tokens.shape, np.nan, dtype=np.float32)
        with torch.no_grad():
            for rows in self._passes(batch):
                logprobs_N, _ = completion_logprobs(model, rows, self.spec.temperature)
                logprobs_BT[rows.sample, rows.column] = logprobs_N.cpu().numpy()
        return logprobs_BT

    def logprob_gap(self, batch: Batch) -> float:
        """Mean absolute difference, by token, between the engine's log-probabilities and the trainer's."""
        return _mean_abs_difference(batch.sampled_logprobs, self.logprobs(batch))

    def with_old_logprobs(self, batch: Batch, max_logprob_gap: float = math.inf) -> Batch:
        """The batch with the current policy's log-probabilities as its old ones, fixed for all updates made from the rollout.

        Samples that contribute nothing to an update stay without. Raises TrainingError where they differ from the engine's by more than
        ``max_logprob_gap``.
        """
        batch = self._contributing(batch)
        old_BT = self.logprobs(batch)
        self._checked_gap(batch, old_BT, max_logprob_gap)
        return replace(batch, old_logprobs=old_BT)

    # ---------------------------------------------------------------------------------------------------------------- learning

    def supervised_update(self, batch: Batch) -> dict[str, float]:
        """One step on -sum_t weight_t log pi(token_t): cross-entropy over completion tokens. Returns metrics."""
        total_loss, num_tokens = 0.0, 0
        for rows in self._passes(batch):
            logprobs_N, _ = completion_logprobs(self.model, rows, temperature=1.0)
            loss = -(logprobs_N * self._at(rows, batch.weights)).sum()
            loss.backward()
            total_loss += loss.item()
            num_tokens += len(rows.target)
        return {"loss/total": total_loss, "train/tokens": num_tokens, **self._step()}

    def policy_update(self, batch: Batch, max_logprob_gap: float = math.inf) -> dict[str, float]:
        """One step of  sum_it w_it ( surrogate(r_it, A_i) + kl_coef kl(pi, pi_ref)_it ).  Returns metrics.

        Where ``batch.old_logprobs`` is NaN, the current log-probabilities stand in for them, which is exact for the first update made from
        a rollout; the engine's are then compared with them, and TrainingError is raised, before any weight has changed, where the mean
        absolute difference by token exceeds ``max_logprob_gap``. Metrics are of the samples that contribute to the gradient.
        """
        algorithm = self.spec.algorithm
        assert algorithm is not None, "a supervised trainer has no policy objective"
        batch = self._contributing(batch)
        old_missing = bool(np.isnan(batch.old_logprobs[batch.loss_mask]).any())
        sums = dict.fromkeys(("loss", "kl", "entropy", "clipped"), 0.0)
        now_BT = np.full(batch.tokens.shape, np.nan, dtype=np.float32)
        for rows in self._passes(batch):
            logprobs_N, entropy_N = completion_logprobs(self.model, rows, self.spec.temperature)
            detached_N = logprobs_N.detach()
            old_N = detached_N if old_missing else self._at(rows, batch.old_logprobs)
            advantages_N = torch.from_numpy(batch.advantages[rows.sample]).to(self.device)
            loss_N = algorithm.surrogate(logprobs_N, old_N, advantages_N, algorithm.clip_low, algorithm.clip_high)
            if self.reference is not None:
                with torch.no_grad():
                    reference_N, _ = completion_logprobs(self.reference, rows, self.spec.temperature)
                kl_N = algorithm.kl(logprobs_N, reference_N)
                loss_N = loss_N + algorithm.kl_coef * kl_N
                sums["kl"] += kl_N.sum().item()
            loss = (loss_N * self._at(rows, batch.weights)).sum()
            loss.backward()
            sums["loss"] += loss.item()
            sums["entropy"] += entropy_N.sum().item()
            sums["clipped"] += is_clipped(detached_N, old_N, advantages_N, algorithm.clip_low, algorithm.clip_high).sum().item()
            now_BT[rows.sample, rows.column] = detached_N.cpu().numpy()
        metrics = {
            "loss/total": sums["loss"],
            "loss/kl": sums["kl"] / max(1, batch.loss_mask.sum()),
            "loss/clipped_frac": sums["clipped"] / max(1, batch.loss_mask.sum()),
            "policy/entropy": sums["entropy"] / max(1, batch.loss_mask.sum()),
        }
        metrics["rollout/logprob_gap"] = (
            self._checked_gap(batch, now_BT, max_logprob_gap)
            if old_missing
            else _mean_abs_difference(batch.sampled_logprobs, batch.old_logprobs)
        )
        return {**metrics, **self._step()}

    def refresh_reference(self) -> None:
        """Reference := policy."""
        if self.reference is not None:
            self.reference = self._frozen_copy()

    # ---------------------------------------------------------------------------------------------------------------- handing out

    def export_weights(self, version: int, dtype: str = "bfloat16") -> WeightUpdate:
        """All weights under their checkpoint names, in the engine's dtype, with a manifest of what was sent."""
        named: dict[str, Tensor] = {}
        seen: set[int] = set()
        for name, parameter in self.model.state_dict(keep_vars=True).items():
            if parameter.data_ptr() not in seen:
                seen.add(parameter.data_ptr())
                named[name] = parameter.detach()
        return pack_weights(named, version, getattr(torch, dtype))

    def save(self, folder: Path) -> None:
        """An ordinary Hugging Face folder: config, bfloat16 safetensors, tokenizer."""
        copy.deepcopy(self.model).to(torch.bfloat16).save_pretrained(folder)
        AutoTokenizer.from_pretrained(self.spec.model).save_pretrained(folder)

    # ---------------------------------------------------------------------------------------------------------------- inside

    def _contributing(self, batch: Batch) -> Batch:
        """Without the samples whose terms are 0, weights unchanged: where nothing holds the policy to its reference, those without advantage.

        One group stays in any case, so that the engine's log-probabilities are compared with the trainer's in every update.
        """
        algorithm = self.spec.algorithm
        if algorithm is None or algorithm.kl_coef > 0:
            return batch
        contributes = batch.advantages != 0
        return batch.take(contributes if contributes.any() else batch.group == batch.group[0])

    def _passes(self, batch: Batch) -> list[PackedPass]:
        return pack(batch, self.spec.optimiser.tokens_per_device)

    def _at(self, rows: PackedPass, array_BT: np.ndarray) -> Tensor:
        return torch.from_numpy(array_BT[rows.sample, rows.column]).to(self.device)

    def _checked_gap(self, batch: Batch, now_BT: np.ndarray, bound: float) -> float:
        gap = _mean_abs_difference(batch.sampled_logprobs, now_BT)
        if math.isfinite(bound) and not gap <= bound:
            self.optimiser.zero_grad(set_to_none=True)
            raise TrainingError(
                f"engine and trainer disagree: the mean absolute log-prob difference is {gap:.4f} a token, the bound {bound:.4f}; "
                "the engine does not hold the trainer's weights, or computes something else with them"
            )
        return gap

    def _step(self) -> dict[str, float]:
        """Clip, step, count. A non-finite gradient skips the step but not its place in the schedule; three in a row stop the run."""
        settings = self.spec.optimiser
        learning_rate = learning_rate_at(self.num_updates, self.spec.total_updates, settings)
        grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.max_grad_norm).item()
        self._skipped_in_a_row = 0 if math.isfinite(grad_norm) else self._skipped_in_a_row + 1
        if self._skipped_in_a_row == 0:
            for group in self.optimiser.param_groups:
                group["lr"] = learning_rate
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.num_updates += 1
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"the gradient was not finite in {MAX_SKIPPED_IN_A_ROW} updates in a row, the last being update {self.num_updates}"
            )
        return {
            "train/grad_norm": grad_norm,
            "train/learning_rate": learning_rate,
            "train/skipped_updates": float(self._skipped_in_a_row > 0),
        }

    def _frozen_copy(self) -> PreTrainedModel:
        return copy.deepcopy(self.model).eval().requires_grad_(False)

    def _adamw(self, settings: Optimiser) -> torch.optim.AdamW:
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        vectors = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(settings.adam_beta1, settings.adam_beta2), fused=True)


def _mean_abs_difference(sampled_BT: np.ndarray, computed_BT: np.ndarray) -> float:
    difference = np.abs(sampled_BT.astype(np.float64) - computed_BT)
    known = ~np.isnan(difference)
    return float(difference[known].mean()) if known.any() else float("nan")
