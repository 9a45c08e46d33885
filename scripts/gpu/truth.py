"""The trainer on the GPU agrees with the trainer on the CPU: log-probs, metrics, and weights after three updates.

In float64 the two must agree to rounding, in float32 nearly so, and in bfloat16 within a few hundredths. Without a GPU the CPU's attention
layout is compared with the GPU's, both on the CPU. The exit code is 1 where something differs by more than its tolerance.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from common import DRY, GPU, RESERVED_TOKENS, WORK, attempt, grouped_batch, make_trainer, record

from grpo.trainer import attention
from grpo.trainer.batch import Batch
from grpo.trainer.policy_trainer import PolicyTrainer

VOCABULARY = 300
HIDDEN_SIZE, LAYERS = (32, 2) if DRY else (128, 3)
GROUP_SIZES = (2, 1) if DRY else (4, 6, 1, 3)
LONGEST_PROMPT, LONGEST_COMPLETION, VERY_LONG = (6, 10, 20) if DRY else (60, 80, 400)  # tokens
UPDATES = 3
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 0.1}  # of the mean log-prob difference by token, before any update
Side = Literal["cpu", "gpu"]


@contextlib.contextmanager
def computing_on(side: Side) -> Iterator[None]:
    """Trainers made and used inside run on the CPU, or on the GPU. Without a GPU, "gpu" means its attention layout on the CPU."""
    is_available, blocks_of = torch.cuda.is_available, attention.AttentionBlocks.of
    if side == "cpu":
        torch.cuda.is_available = lambda: False
    elif not GPU:
        attention.AttentionBlocks.of = staticmethod(_sequence_layout)  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.cuda.is_available = is_available
        attention.AttentionBlocks.of = staticmethod(blocks_of)  # type: ignore[method-assign]


def _sequence_layout(packed: Any, device: torch.device) -> attention.AttentionBlocks:
    """What AttentionBlocks.of makes for a CUDA device: every sequence whole, in a row of its own."""
    return attention.AttentionBlocks((), tuple(attention._SequenceIndex.of(rows, device) for rows in packed.sequences()))


# ------------------------------------------------------------------------------------------------------------ models and batches


def small_model(family: str) -> Path:
    """A folder with a small model whose distributions are sharp, and whose norms and biases are not the 1 and 0 that would hide a mistake."""
    folder = WORK / f"truth-{family}"
    if (folder / "config.json").exists():
        return folder
    own = {
        "Qwen2": dict(num_key_value_heads=2, tie_word_embeddings=True),
        "Qwen3": dict(num_key_value_heads=2, tie_word_embeddings=False, head_dim=64),
        "Llama": dict(num_key_value_heads=1, tie_word_embeddings=False),
    }[family]
    sizes = dict(hidden_size=HIDDEN_SIZE, intermediate_size=192, num_hidden_layers=LAYERS, num_attention_heads=4)
    tokens = dict(vocab_size=VOCABULARY, eos_token_id=1, pad_token_id=1, bos_token_id=None)
    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(initializer_range=0.12, max_position_embeddings=2048, **sizes, **tokens, **own)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def to_float64(model: Any) -> None:
    """The model in float64 throughout; transformers' own norms would pass through float32."""

    def norm(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon))

    for module in model.double().modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(norm, module)


def mixed_batch(seed: int = 0, longest: int = VERY_LONG) -> Batch:
    """Groups of several sizes, samples of widely different lengths. The first sample has ``longest`` tokens."""
    rng = np.random.default_rng(seed)

    def tokens(length: int) -> list[int]:
        return rng.integers(RESERVED_TOKENS, VOCABULARY, length).tolist()

    prompts = [tokens(int(rng.integers(3, LONGEST_PROMPT))) for _ in GROUP_SIZES]
    completions = [[tokens(int(rng.integers(1, LONGEST_COMPLETION))) for _ in range(size)] for size in GROUP_SIZES]
    completions[0][0] = tokens(longest)
    return grouped_batch(prompts, completions, seed, max_tokens=longest)


# --------------------------------------------------------------------------------------------------------------------- checks


@dataclass(frozen=True)
class Trained:
    """What a trainer computes before and after its updates."""

    before_BT: np.ndarray
    after_BT: np.ndarray
    metrics: list[dict[str, float]]
    weights: dict[str, torch.Tensor]


def train(side: Side, folder: Path, precision: str, **settings: Any) -> Trained:
    with computing_on(side):
        layout = "bfloat16" if precision == "bfloat16" else "float32"
        trainer = make_trainer(folder, kl_coef=0.1, temperature=0.8, precision=layout, **{"max_tokens": 4096, **settings})
        if precision == "float64":
            for model in (trainer.model, trainer.reference):
                if model is not None:
                    to_float64(model)
        batch = mixed_batch()
        before = trainer.logprobs(batch)
        metrics = [trainer.policy_update(batch) for _ in range(UPDATES)]
        weights = {name: p.detach().double().cpu() for name, p in trainer.model.named_parameters() if p.requires_grad}
        return Trained(before, trainer.logprobs(batch), metrics, weights)


def compare(name: str, folder: Path, precision: str, **settings: Any) -> bool:
    """Train on both sides and record how far they are apart. True where the log-probs agree within the tolerance of ``precision``."""
    cpu, gpu = train("cpu", folder, precision, **settings), train("gpu", folder, precision, **settings)
    before, after = np.abs(cpu.before_BT - gpu.before_BT), np.abs(cpu.after_BT - gpu.after_BT)
    counted = ~np.isnan(cpu.before_BT)
    agrees = bool(before[counted].mean() <= TOLERANCE[precision]) and bool(np.isfinite(gpu.after_BT[counted]).all())
    record(
        "truth", what=name, precision=precision, agrees=agrees, logprobs_max=before[counted].max(), logprobs_mean=before[counted].mean(),
        after_updates_mean=after[counted].mean(), weights_max=max(float((w - gpu.weights[key]).abs().max()) for key, w in cpu.weights.items()),
        metrics_rel=relative_differences(cpu.metrics, gpu.metrics),
    )  # fmt: skip
    return agrees


def relative_differences(first: list[dict[str, float]], second: list[dict[str, float]]) -> dict[str, float]:
    """The largest relative difference of each metric over all updates; metrics that are equal to the bit are left out."""
    worst: dict[str, float] = {}
    for a, b in zip(first, second, strict=True):
        for key in a.keys() & b.keys():
            if a[key] != b[key]:
                worst[key] = max(worst.get(key, 0.0), abs(a[key] - b[key]) / (abs(a[key]) + 1e-12))
    return {key: float(f"{value:.2e}") for key, value in sorted(worst.items())}


def compare_runs_on_gpu() -> bool:
    """Do two trainers make the same bits from the same batches? At 900 tokens flash attention's backward pass sums in no fixed order."""
    for longest in (VERY_LONG,) if DRY else (60, 900):
        made = []
        for _ in range(2):
            with computing_on("gpu"):
                trainer = make_trainer(small_model("Qwen2"), max_tokens=8192)
                for seed in range(UPDATES):
                    trainer.policy_update(mixed_batch(seed, longest))
                made.append([parameter.detach().cpu() for parameter in trainer.model.parameters()])
        record("repeats_bit_for_bit", longest=longest, same=all(torch.equal(a, b) for a, b in zip(*made, strict=True)))
    return True


def compare_after_sleep() -> bool:
    """A trainer that slept between updates computes what one that stayed awake computes."""
    with computing_on("gpu"):
        slept, stayed_awake = (make_trainer(small_model("Qwen2"), kl_coef=0.1) for _ in range(2))
        for seed in range(UPDATES):
            for trainer in (slept, stayed_awake):
                trainer.policy_update(mixed_batch(seed, LONGEST_COMPLETION))
            record("trainer_memory", **sleep_and_wake(slept))
        difference = np.nanmax(np.abs(slept.logprobs(mixed_batch()) - stayed_awake.logprobs(mixed_batch())))
    agrees = bool(difference <= TOLERANCE["float32"])
    record("after_sleep", agrees=agrees, logprobs_max=difference)
    return agrees


def sleep_and_wake(trainer: PolicyTrainer) -> dict[str, float]:
    """MiB of GPU memory allocated awake and asleep."""
    awake = torch.cuda.memory_allocated() if GPU else 0
    trainer.sleep()
    asleep = torch.cuda.memory_allocated() if GPU else 0
    trainer.wake()
    return {"awake_mib": awake / 2**20, "asleep_mib": asleep / 2**20}


def main() -> int:
    checks: dict[str, Callable[[], bool]] = {
        family: partial(compare, family, small_model(family), "float64") for family in ("Qwen2", "Llama", "Qwen3")
    }
    qwen = small_model("Qwen2")
    checks |= {
        "float32": partial(compare, "Qwen2", qwen, "float32"),
        "bfloat16": partial(compare, "Qwen2", qwen, "bfloat16"),
        "LoRA": partial(compare, "Qwen2, LoRA", qwen, "bfloat16", lora_rank=4),
        "checkpointing": partial(compare, "Qwen2, gradient checkpointing", qwen, "float32", checkpointing=True),
        "small micro-batches": partial(compare, "Qwen2, small micro-batches", qwen, "float64", max_tokens=VERY_LONG + LONGEST_COMPLETION),
        "repeats": compare_runs_on_gpu,
        "sleep": compare_after_sleep,
    }
    return int(not all([attempt(f"truth {name}", check) for name, check in checks.items()]))


if __name__ == "__main__":
    raise SystemExit(main())
