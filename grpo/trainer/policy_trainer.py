"""The policy and its optimizer: score tokens, take an optimizer step, hand out weights."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MethodType

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from grpo.algorithm import Algorithm
from grpo.algorithm.objective import Tokens, token_losses
from grpo.config import OptimizerKeys, Trainer
from grpo.errors import TrainingError
from grpo.trainer.adapters import add_adapters, holds_rounded, round_frozen, save_adapters
from grpo.trainer.attention import ATTENTION
from grpo.trainer.batch import Batch
from grpo.trainer.ewc import Anchor
from grpo.trainer.export import checkpoint_weights, computed_weights, stays_float32, write_folder
from grpo.trainer.layout_check import Precision, check_layout, check_saved, probe
from grpo.trainer.loading import loaded
from grpo.trainer.logprobs import SCORE, completion_logprobs, score
from grpo.trainer.memory_budget import ENOUGH_TOKENS, TrainedStage, longest_sequence
from grpo.trainer.packing import PackedPass, pack
from grpo.trainer.ranks import ALONE, RankPlace, Ranks, whole
from grpo.trainer.schedule import learning_rate_at
from grpo.trainer.state import read_tensors, tensors_of, write_tensors
from rollout.faults import fault, fault_point
from rollout.memory import bytes_of_tree
from rollout.types import SamplingParams
from rollout.weight_sync.weights import Transport, WeightUpdate, pack_weights

MAX_SKIPPED_IN_A_ROW = 3
SUMS = ("loss", "entropy", "kl", "clipped", "importance", "capped", "nonfinite")  # what an update adds up over tokens


@dataclass(frozen=True)
class TrainerSpec:
    """What a trainer is made of. ``algorithm`` None makes a supervised one; no reference is kept where its coefficient is 0.

    ``sampling`` is what the engine samples with, so that log-probabilities here are at its temperature; None where nothing is sampled.
    """

    model: Path
    optimizer: OptimizerKeys
    total_updates: int
    algorithm: Algorithm | None = None
    sampling: SamplingParams | None = None
    num_threads: int | None = None
    seed: int = 0
    layout: Trainer = Trainer()

    @property
    def temperature(self) -> float:
        return 1.0 if self.sampling is None else self.sampling.temperature


class PolicyTrainer:
    """fp32 masters under bf16 autocast, AdamW, gradient clipping. One instance, one rank, one device.

    All ranks must call every method alike: they are given the same batch, and each takes its share of it.
    """

    def __init__(self, spec: TrainerSpec, place: RankPlace = ALONE):
        if spec.num_threads:
            torch.set_num_threads(spec.num_threads)
        self.spec = spec
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.ranks = Ranks(place, spec.layout.shard, self.device)
        self.model = self._loaded()
        self.adapted = add_adapters(self.model, spec.optimizer.lora, spec.seed) if spec.optimizer.lora else None
        check_layout(self.model, longest_sequence(spec.optimizer) if isinstance(spec.optimizer, TrainedStage) else 0)
        if self._holds_rounded:
            round_frozen(self.model)
            self.model.to(self.device)
        if spec.optimizer.gradient_checkpointing:
            _checkpoint_layers(self.model)
        self._distribute(self.model)
        if spec.layout.compile:
            _compile_pointwise(self.model)
        needs_reference = spec.algorithm is not None and spec.algorithm.needs_reference
        self.reference = self._frozen_reference() if needs_reference and self.adapted is None else None
        self.optimizer = self._adamw(spec.optimizer)
        self.num_updates = 0
        self._skipped_in_a_row = 0
        self._reference_is_start = True
        self.anchor: Anchor | None = None
        self._is_asleep = False

    # ---------------------------------------------------------------------------------------------------------------- looking

    def logprobs(self, batch: Batch, *, of_reference: bool = False) -> np.ndarray:
        """Log-probability of each completion token at the sampling temperature, [B, T], NaN elsewhere. No gradient."""
        logprobs_BT = np.full(batch.tokens.shape, np.nan)
        of = self._reference_logprobs if of_reference else self._logprobs
        with torch.no_grad():
            for packed in self._passes(batch):
                logprobs_BT[packed.sample, packed.column] = of(packed)[0].cpu().numpy()
        self.ranks.release(self.model)
        return self._of_all_ranks(batch, logprobs_BT)

    def sequence_divergence(self, batch: Batch) -> np.ndarray:
        """sum_t log pi(token_t) - log pi_ref(token_t) of each sample, [B]: k1 over whole samples. Tokens without finite ones do not count."""
        difference_BT = self.logprobs(batch) - self.logprobs(batch, of_reference=True)
        return np.where(np.isfinite(difference_BT), difference_BT, 0.0).sum(axis=1)

    def logprob_gap(self, batch: Batch) -> float:
        """Mean absolute difference, by token, between the engine's log-probabilities and the trainer's."""
        return _gap(batch, self.logprobs(batch))

    def with_old_logprobs(self, batch: Batch, max_logprob_gap: float = math.inf) -> Batch:
        """The batch with the current policy's log-probabilities as its old ones, fixed for all updates made from the rollout.

        Samples that contribute nothing to an update stay without. Raises TrainingError where they differ from the engine's by more than
        ``max_logprob_gap``. A batch without tokens that count comes back as it is.
        """
        if not batch.loss_mask.any():
            return batch
        batch = self._contributing(batch)
        old_BT = self.logprobs(batch)
        self._checked_gap(batch, old_BT, max_logprob_gap)
        return replace(batch, old_logprobs=old_BT, loss_mask=batch.loss_mask & np.isfinite(old_BT))

    # ---------------------------------------------------------------------------------------------------------------- learning

    def hold_weights(self, batch: Batch, coef: float) -> None:
        """From now on every update is drawn back to the present weights, by what each of them means to ``batch`` (grpo.trainer.ewc)."""
        assert self.ranks.size == 1 and self.adapted is None, "the recipe's check lets no such stage through"
        self.anchor = Anchor.of_gradients(self._trained_parameters(), coef, self._row_gradients(batch))

    def supervised_update(self, batch: Batch, rate: float = 1.0, weight_decay: float | None = None) -> dict[str, float]:
        """One step on -sum_t weight_t log pi(token_t): cross-entropy over completion tokens. Returns metrics.

        ``rate`` scales the schedule's learning rate; ``weight_decay`` None is the stage's own.
        """
        total_loss = 0.0
        for packed in self._passes(batch):
            logprobs_M, _ = self._logprobs(packed)
            loss = -(logprobs_M * self._at(packed, batch.weights, logprobs_M)).sum()
            loss.backward()
            total_loss += loss.item()
        (total_loss,) = self.ranks.sum(np.array([total_loss])).tolist()
        penalty = {"loss/ewc": self.anchor.pull(self._trained_parameters())} if self.anchor is not None else {}
        step = self._step(rate, weight_decay)
        return {"loss/total": total_loss, **penalty, "train/tokens": int(batch.loss_mask.sum()), **step}

    def policy_update(self, batch: Batch, max_logprob_gap: float = math.inf) -> dict[str, float]:
        """One step on sum_it weights_it token_losses_it (grpo.algorithm.objective). Returns metrics.

        Where ``batch.old_logprobs`` is NaN, the current log-probabilities stand in for them, which is exact for the first update made from
        a rollout; the engine's are then compared with them, and TrainingError is raised, before any weight has changed, where the mean
        absolute difference by token exceeds ``max_logprob_gap``. Metrics are of the samples that contribute to the gradient.
        """
        fault_point("updating")
        algorithm = self.spec.algorithm
        assert algorithm is not None, "a supervised trainer has no policy objective"
        if not batch.loss_mask.any():
            self.num_updates += 1  # skipped, but its place in the schedule is taken
            return {"train/empty_updates": 1.0, "train/skipped_updates": 1.0}
        batch = self._contributing(batch)
        old_missing = bool(np.isnan(batch.old_logprobs[batch.loss_mask]).all())
        sums = dict.fromkeys(SUMS, 0.0)
        largest_importance = 0.0
        now_BT = np.full(batch.tokens.shape, np.nan)
        for packed in self._passes(batch):
            logprobs_M, entropy_M = self._logprobs(packed)
            tokens, known_M = self._tokens(batch, packed, logprobs_M.detach(), old_missing)
            found = token_losses(algorithm, tokens)
            loss = (found.loss * self._at(packed, batch.weights, logprobs_M) * known_M).sum()
            (grad_M,) = torch.autograd.grad(loss, tokens.logprobs)
            logprobs_M.backward(grad_M * known_M)
            sums["loss"] += loss.item()
            sums["entropy"] += entropy_M.nan_to_num().sum().item()
            sums["kl"] += found.kl.sum().item() if found.kl is not None else 0.0
            sums["clipped"] += found.clipped.sum().item()
            sums["importance"] += found.importance.sum().item()
            sums["capped"] += (found.importance > algorithm.importance_cap).sum().item()
            sums["nonfinite"] += (~known_M).sum().item()
            largest_importance = max(largest_importance, found.importance.max().item() if len(known_M) else 0.0)
            now_BT[packed.sample, packed.column] = logprobs_M.detach().cpu().numpy()
        sums = dict(zip(SUMS, self.ranks.sum(np.array([sums[name] for name in SUMS])).tolist(), strict=True))
        now_BT = self._of_all_ranks(batch, now_BT)
        num_tokens = max(1, int(batch.loss_mask.sum()))
        gap = self._checked_gap(batch, now_BT, max_logprob_gap) if old_missing else _gap(batch, batch.old_logprobs)
        return {
            "loss/total": sums["loss"],
            "loss/kl": sums["kl"] / num_tokens,
            "loss/clipped_frac": sums["clipped"] / num_tokens,
            "policy/entropy": sums["entropy"] / num_tokens,
            "rollout/logprob_gap": gap,
            "rollout/importance_mean": sums["importance"] / num_tokens,
            "rollout/importance_max": self.ranks.largest(largest_importance),
            "rollout/importance_capped_frac": sums["capped"] / num_tokens,
            "train/nonfinite_logprobs": sums["nonfinite"],
            **self._step(),
        }

    def memory_bytes(self) -> dict[str, int]:
        """What this rank takes now of main memory, and has taken at most of its GPU's."""
        on_gpu = {"trainer_gpu": torch.cuda.max_memory_allocated(self.device)} if self.device.type == "cuda" else {}
        return {"trainer": bytes_of_tree(), **on_gpu}

    def sleep(self) -> None:
        """All that it holds goes to main memory, until ``wake``: an engine on the same GPU takes its turn."""
        self._move(torch.device("cpu"))
        self._is_asleep = True
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def wake(self) -> None:
        self._move(self.device)
        self._is_asleep = False

    def refresh_reference(self) -> None:
        """Reference := policy. With adapters the reference is the weights below them and stays."""
        if self.reference is not None:
            self._reference_is_start = False
            with torch.no_grad():
                for of_reference, of_policy in zip(self.reference.parameters(), self.model.parameters(), strict=True):
                    of_reference.copy_(of_policy)

    # ---------------------------------------------------------------------------------------------------------------- handing out

    def export_weights(self, version: int, dtype: str = "bfloat16", transport: Transport = "host") -> WeightUpdate | None:
        """All weights under their checkpoint names, in the engine's dtype, with a manifest of what was sent. From the first rank."""
        self._check_awake()
        weights = checkpoint_weights(self.model)
        if self.ranks.rank == 0:
            return pack_weights(weights, version, getattr(torch, dtype), transport, stays_float32(self.model))
        _gone_through(weights)
        return None

    def save(self, folder: Path) -> None:
        """An ordinary Hugging Face folder: config, bfloat16 safetensors, tokenizer; adapters are folded in, and kept beside it.

        It is then loaded once. Raises TrainingError, and leaves nothing, where it is not the model that was trained (grpo.trainer.layout_check).
        """
        weights = checkpoint_weights(self.model)
        batch = probe(self.model)
        expected = self.logprobs(batch)
        if self.ranks.rank == 0:
            write_folder(weights, self.model, self.spec.model, folder)
            try:
                check_saved(folder, computed_weights(self.model), batch, expected, self._precision, self.spec.temperature)
            except TrainingError:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        else:
            _gone_through(weights)
            _gone_through(computed_weights(self.model))
        if self.adapted is not None:
            save_adapters(self.adapted, folder.with_name("adapter"), is_first_rank=self.ranks.rank == 0)

    # ---------------------------------------------------------------------------------------------------------------- going on

    def save_state(self, folder: Path) -> dict[str, float]:
        """All that updates have changed, into ``folder``, to the bit. Returns the few numbers that belong to it, from the first rank."""
        if self.ranks.is_sharded or self.ranks.rank == 0:
            reference = None if self._reference_is_start else self.reference
            write_tensors(dict(tensors_of(self.model, self.optimizer, reference)), folder, self._part)
        return {"num_updates": self.num_updates, "skipped_in_a_row": self._skipped_in_a_row, "reference_is_start": self._reference_is_start}

    def load_state(self, folder: Path, numbers: Mapping[str, float]) -> None:
        """Go on from what ``save_state`` wrote and returned."""
        read_tensors(folder, self._part, self.model, self.optimizer, self.reference)
        self.num_updates, self._skipped_in_a_row = int(numbers["num_updates"]), int(numbers["skipped_in_a_row"])
        self._reference_is_start = bool(numbers["reference_is_start"])
        if self.spec.layout.offload_optimizer:
            self._move_optimizer(torch.device("cpu"))

    # ---------------------------------------------------------------------------------------------------------------- inside

    @property
    def _part(self) -> str:
        return f"trainer-{self.ranks.rank}-of-{self.ranks.size}" if self.ranks.is_sharded else "trainer"

    def _contributing(self, batch: Batch) -> Batch:
        """Without the samples whose terms are 0, weights unchanged: where nothing holds the policy to its reference, those without advantage.

        One group with tokens stays in any case, so that the engine's log-probabilities are compared with the trainer's in every update.
        """
        algorithm = self.spec.algorithm
        if algorithm is None or algorithm.has_kl_in_loss:
            return batch
        has_tokens = batch.loss_mask.any(axis=1)
        contributes = has_tokens & (batch.advantages != 0)
        return batch.take(contributes if contributes.any() else batch.group == batch.group[has_tokens.argmax()])

    def _passes(self, batch: Batch) -> list[PackedPass]:
        self._check_awake()
        tokens = self.spec.optimizer.max_tokens_per_micro_batch or max(ENOUGH_TOKENS[self.device.type], int(batch.lengths.max(initial=1)))
        return pack(batch, tokens, self.ranks.rank, self.ranks.size)

    def _logprobs(self, packed: PackedPass, of: PreTrainedModel | None = None) -> tuple[Tensor, Tensor]:
        return completion_logprobs(of or self.model, packed, self.spec.temperature, autocast=self._is_rounded)

    @property
    def _precision(self) -> Precision:
        return "frozen in bfloat16" if self._holds_rounded else self.spec.layout.precision

    @property
    def _is_rounded(self) -> bool:
        return self.spec.layout.precision == "bfloat16"

    def _reference_logprobs(self, packed: PackedPass) -> tuple[Tensor, Tensor]:
        """Of the frozen copy, or of the weights below the adapters."""
        if self.adapted is not None:
            with self.adapted.disable_adapter():
                return self._logprobs(packed)
        assert self.reference is not None, "this algorithm has no reference"
        return self._logprobs(packed, self.reference)

    def _tokens(self, batch: Batch, packed: PackedPass, logprobs_M: Tensor, old_missing: bool) -> tuple[Tokens, Tensor]:
        """For the loss, with a gradient of their own; and which of them have finite log-probabilities. Those that do not are as likely as before."""
        reference_M = None
        if self.spec.algorithm is not None and self.spec.algorithm.has_kl_in_loss:
            with torch.no_grad():
                reference_M, _ = self._reference_logprobs(packed)
        old_M = logprobs_M if old_missing else self._at(packed, batch.old_logprobs, logprobs_M)
        known_M = logprobs_M.isfinite() & old_M.isfinite()
        if reference_M is not None:
            known_M &= reference_M.isfinite()
            reference_M = reference_M.where(known_M, 0.0)
        tokens = Tokens(
            logprobs=logprobs_M.where(known_M, 0.0).requires_grad_(),
            old_logprobs=old_M.where(known_M, 0.0),
            sampled_logprobs=self._at(packed, batch.sampled_logprobs, logprobs_M).where(known_M, math.nan),
            reference_logprobs=reference_M,
            advantages=torch.from_numpy(batch.advantages[packed.sample]).to(logprobs_M),
            sequence=torch.from_numpy(np.unique(packed.sample, return_inverse=True)[1]).to(self.device),
        )
        return tokens, known_M

    def _at(self, packed: PackedPass, array_BT: np.ndarray, like: Tensor) -> Tensor:
        return torch.from_numpy(array_BT[packed.sample, packed.column]).to(like)

    def _of_all_ranks(self, batch: Batch, found_BT: np.ndarray) -> np.ndarray:
        """What each rank found of its share, put together; NaN where no completion token stands."""
        if self.ranks.size == 1:
            return found_BT
        mine_BT = np.zeros(found_BT.shape, dtype=bool)
        for packed in self._passes(batch):
            mine_BT[packed.sample, packed.column] = True
        return np.where(batch.loss_mask, self.ranks.sum(np.where(mine_BT, found_BT, 0.0)), np.nan)

    def _checked_gap(self, batch: Batch, now_BT: np.ndarray, bound: float) -> float:
        gap = _gap(batch, now_BT)
        if math.isfinite(bound) and not gap <= bound:
            self.optimizer.zero_grad(set_to_none=True)
            raise TrainingError(
                f"engine and trainer disagree: the mean absolute log-prob difference is {gap:.4f} a token, the bound {bound:.4f}; "
                "the engine does not hold the trainer's weights, or computes something else with them"
            )
        return gap

    def _row_gradients(self, batch: Batch) -> Iterator[None]:
        """Leaves, one sequence after another, the gradient of its log-probability in the parameters."""
        for b in range(len(batch)):
            self.optimizer.zero_grad(set_to_none=True)
            for packed in self._passes(batch.take(np.array([b]))):
                self._logprobs(packed)[0].sum().backward()
            yield
        self.optimizer.zero_grad(set_to_none=True)

    def _trained_parameters(self) -> list[torch.nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def _step(self, rate: float = 1.0, weight_decay: float | None = None) -> dict[str, float]:
        """Clip, step, count. A non-finite gradient skips the step but not its place in the schedule; three in a row stop the run."""
        settings = self.spec.optimizer
        self.ranks.sum_gradients(self.model)
        learning_rate = rate * learning_rate_at(self.num_updates, self.spec.total_updates, settings)
        if fault() == "out_of_memory":
            torch.empty(2**50, device=self.device)
        if fault() == "nan_gradient":
            next(p for p in self.model.parameters() if p.grad is not None).grad.fill_(math.nan)  # type: ignore[union-attr]
        grad_norm = whole(torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.max_grad_norm)).item()
        self._skipped_in_a_row = 0 if math.isfinite(grad_norm) else self._skipped_in_a_row + 1
        if self._skipped_in_a_row == 0:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            matrices = self.optimizer.param_groups[0]
            matrices["weight_decay"] = settings.weight_decay if weight_decay is None else weight_decay
            with self._optimizer_on_device():
                self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.num_updates += 1
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"the gradient was not finite in {MAX_SKIPPED_IN_A_ROW} updates in a row, the last being update {self.num_updates}"
            )
        return {
            "train/grad_norm": grad_norm,
            "train/learning_rate": learning_rate,
            "train/empty_updates": 0.0,
            "train/skipped_updates": float(self._skipped_in_a_row > 0),
        }

    @contextmanager
    def _optimizer_on_device(self) -> Iterator[None]:
        """Its state lies in host memory between updates where offload_optimizer says so."""
        if self.spec.layout.offload_optimizer:
            self._move_optimizer(self.device)
        yield
        if self.spec.layout.offload_optimizer:
            self._move_optimizer(torch.device("cpu"))

    def _check_awake(self) -> None:
        if self._is_asleep:
            raise TrainingError("the trainer is asleep: engines have its GPU, and it takes its turn before it works")

    def _move(self, to: torch.device) -> None:
        self.model.to(to)  # type: ignore[arg-type]
        if self.reference is not None:
            self.reference.to(to)  # type: ignore[arg-type]
        if not self.spec.layout.offload_optimizer:
            self._move_optimizer(to)
        if self.anchor is not None:
            self.anchor = self.anchor.moved(to)

    def _move_optimizer(self, to: torch.device) -> None:
        for state in self.optimizer.state.values():
            state.update({name: value.to(to) for name, value in state.items() if isinstance(value, Tensor) and value.ndim > 0})

    def _loaded(self) -> PreTrainedModel:
        """In evaluation mode, so without dropout: the ratio compares one distribution with itself."""
        model = loaded(self.spec.model, dtype=torch.float32, attn_implementation=ATTENTION)
        # What will be smaller on the device stays in main memory until it is: sharding moves a layer at a time.
        return (model if self.ranks.is_sharded or self._holds_rounded else model.to(self.device)).eval()

    @property
    def _holds_rounded(self) -> bool:
        return holds_rounded(AutoConfig.from_pretrained(self.spec.model), self.spec.optimizer, self.spec.layout)

    def _frozen_reference(self) -> PreTrainedModel:
        reference = self._loaded().requires_grad_(False)
        self._distribute(reference, keeps_layers=False)
        return reference

    def _distribute(self, model: PreTrainedModel, keeps_layers: bool = True) -> None:
        if self.ranks.is_sharded:
            setattr(model, SCORE, MethodType(score, model))
            self.ranks.distribute(model, SCORE, rounded=self._is_rounded, keeps_layers=keeps_layers)

    def _adamw(self, settings: OptimizerKeys) -> torch.optim.AdamW:
        trained = self._trained_parameters()
        matrices, vectors = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(settings.adam_beta1, settings.adam_beta2), fused=True)


def _checkpoint_layers(model: PreTrainedModel) -> None:
    """Layers are computed again on the way back, in evaluation mode: transformers' own checkpointing wants training mode, and so dropout."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise TrainingError(f"{type(model).__name__} has no layers to checkpoint; write gradient_checkpointing: false")
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def _compile_pointwise(model: PreTrainedModel) -> None:
    """Norms and feed-forward layers: chains of elementwise steps that a compiler makes one. Attention is ours and stays as it is."""
    for module in model.modules():
        if type(module).__name__.endswith(("RMSNorm", "MLP")):
            module.compile(dynamic=True)


def _gone_through(weights: Iterable[object]) -> None:
    """Gathering shards takes all ranks; the first one keeps them."""
    for _ in weights:
        pass


def _gap(batch: Batch, computed_BT: np.ndarray) -> float:
    """Mean absolute difference by token between the engine's log-probabilities and ``computed_BT``, where both are known."""
    difference = np.abs(batch.sampled_logprobs - computed_BT)[batch.loss_mask]
    known = np.isfinite(difference)
    return float(difference[known].mean()) if known.any() else float("nan")
