"""How much memory does a trainer take, and how many tokens fit one pass? From shapes, never from timings, so that a run repeats.

Weights, gradients and optimizer are counted from the model without its weights. What a token leaves behind for the way back was measured on
two CPU cores with models of 4M to 135M parameters (2026-11-22): between 0.84 and 1.17 of the formula in ``activation_bytes``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from transformers import AutoConfig, PretrainedConfig

from grpo.algorithm import load_algorithm
from grpo.config import DistillStage, Lora, OptimizerKeys, RlStage, SftStage, Trainer
from grpo.errors import TrainingError
from grpo.trainer.adapters import add_adapters, holds_rounded, linear_layers
from grpo.trainer.attention import ATTENTION, without_weights
from grpo.trainer.layout_check import check_head
from grpo.trainer.shapes import Shapes, config_from_json

ENOUGH_TOKENS = {"cpu": 2048, "cuda": 32768}  # of a pass: more do not make a large model's matrix products faster
CHEAP_BYTES = (
    2**30
)  # a small model's pass may hold more tokens as long as they take no more than this: fewer calls of many small operations
MOST_TOKENS = 8192
USED_FRAC = 0.8  # of what is free: estimates err, and allocators keep some for themselves
TrainedStage = SftStage | RlStage | DistillStage
HEAD_BYTES = 2**29  # logits of a pass, and their gradient
FOLDED_BYTES = 6  # of a weight while an adapter is folded into its matrix: the sum in float32, and rounded


@dataclass(frozen=True)
class Footprint:
    """Bytes that one rank holds before it sees a token, and those that each token of a pass adds.

    ``at_rest``: what of them is there between updates, and the optimizer's state wherever that lies.
    """

    weights: int
    reference: int
    gradients: int
    optimizer: int
    per_token: int
    num_parameters: int
    at_rest: int = 0

    @property
    def fixed(self) -> int:
        return self.weights + self.reference + self.gradients + self.optimizer + HEAD_BYTES

    def tokens_within(self, free_bytes: float, device: str) -> int:
        """Tokens of a pass in ``free_bytes``; 0 where not even the fixed part fits."""
        fitting = int(USED_FRAC * max(0.0, free_bytes - self.fixed)) // self.per_token
        return min(fitting, max(ENOUGH_TOKENS[device], min(MOST_TOKENS, CHEAP_BYTES // self.per_token)))

    def in_words(self) -> str:
        gib = lambda number: f"{number / 2**30:.1f}"  # noqa: E731
        parts = f"weights {gib(self.weights)}, gradients {gib(self.gradients)}, optimizer {gib(self.optimizer)}"
        more = f", reference {gib(self.reference)}" if self.reference else ""
        return f"{parts}{more} GiB, and {self.per_token / 2**20:.2f} MiB for each token of a pass"


def footprint(model: Path | PretrainedConfig, optimizer: OptimizerKeys, layout: Trainer, needs_reference: bool, device: str) -> Footprint:
    """Of one rank that trains the model of folder ``model``, or of those shapes. Raises TrainingError where adapters match no layer."""
    config = AutoConfig.from_pretrained(model) if isinstance(model, Path) else model
    count = count_parameters(config.to_json_string(use_diff=False), optimizer.lora and optimizer.lora.model_dump_json())
    parameters, trained = count.all, count.trained
    rounded = count.in_matrices if holds_rounded(config, optimizer, layout) else 0
    shared_out = layout.ranks if layout.shard != "none" else 1
    layers = Shapes.of(config).layers
    looked_up = count.looked_up if layout.shard == "none" else 0  # autocast copies what is multiplied
    copied = 2 * (parameters - rounded - looked_up) if layout.precision == "bfloat16" else 0  # by autocast, or what a layer is gathered in
    gathered = copied if layout.shard != "parameters" else 2 * copied // layers
    moments = 0 if layout.offload_optimizer and device == "cuda" else 8 * trained
    kept = (4 * parameters - 2 * rounded) // shared_out
    return Footprint(
        weights=kept + gathered + (FOLDED_BYTES * count.largest if optimizer.lora else 0),
        reference=4 * parameters // shared_out if needs_reference and optimizer.lora is None else 0,
        gradients=4 * trained // shared_out,
        optimizer=moments // shared_out,
        per_token=activation_bytes(config, optimizer.gradient_checkpointing),
        num_parameters=parameters,
        at_rest=kept + (4 * parameters if needs_reference and optimizer.lora is None else 0) // shared_out + 8 * trained // shared_out,
    )


@dataclass(frozen=True)
class Count:
    """Parameters of a model: all, those that are trained, those in matrices, those in the largest of a layer, and embeddings that
    are no output layer."""

    all: int
    trained: int
    in_matrices: int
    largest: int
    looked_up: int


@cache
def count_parameters(config: str, lora: str | None = None) -> Count:
    """Of a model without its weights. Both arguments are JSON; with ``lora`` only adapters are trained, and matrices are what is below them.

    Raises TrainingError where transformers cannot make it, or adapters match no layer.
    """
    empty = without_weights(config_from_json(config))
    matrices = linear_layers(empty)
    embeddings = empty.get_input_embeddings().weight
    looked_up = embeddings.numel() if empty.get_output_embeddings() in matrices else 0  # type: ignore[operator]
    if lora is not None:
        with torch.device("meta"):
            add_adapters(empty, Lora.model_validate_json(lora), seed=0)
    sizes = [(p.numel(), p.requires_grad) for p in empty.parameters()]
    return Count(
        all=sum(size for size, _ in sizes),
        trained=sum(size for size, is_trained in sizes if is_trained),
        in_matrices=sum(layer.weight.numel() for layer in matrices),
        largest=max((layer.weight.numel() for layer in matrices if layer is not empty.get_output_embeddings()), default=0),
        looked_up=looked_up,
    )


@cache
def check_trained(config: str, lora: str | None) -> None:
    """Raises TrainingError where it is known without weights that the trainer does not compute this model with these adapters."""
    empty = without_weights(config_from_json(config), ATTENTION)
    check_head(empty)
    if lora is not None:
        count_parameters(config, lora)


def activation_bytes(config: PretrainedConfig, checkpointed: bool) -> int:
    """What a token leaves behind for the way back, under bfloat16 autocast: a layer's inputs and outputs, as autograd saves them.

    Checkpointing keeps a layer's input, in float32, and works on one layer at a time; six layers' worth were measured at its peak.
    """
    shapes = Shapes.of(config)
    of_a_layer = 30 * shapes.hidden + 14 * shapes.head_dim * (shapes.heads + shapes.kv_heads) + 9 * shapes.width
    return 4 * shapes.hidden * shapes.layers + 6 * of_a_layer if checkpointed else (shapes.layers + 1) * of_a_layer


def settled_tokens(needed: Footprint, longest: int, free_bytes: float, device: str) -> int:
    """Tokens of a pass for sequences of at most ``longest``. Raises TrainingError, with numbers, where one such sequence does not fit."""
    if needed.fixed + longest * needed.per_token <= free_bytes:
        return max(longest, needed.tokens_within(free_bytes, device))
    room = free_bytes / 2**30
    raise TrainingError(
        f"a sequence of {longest} tokens does not fit: a trainer of {needed.num_parameters / 1e6:.0f}M parameters holds {needed.in_words()}, "
        f"and {room:.1f} GiB are free for it; shorten completions, set gradient_checkpointing: true, train with lora, share out with "
        "trainer.shard, or write max_tokens_per_micro_batch yourself to try it all the same"
    )


def has_reference(stage: TrainedStage, base: Path) -> bool:
    """Does a frozen model stand beside the one that is trained? ``base`` is the folder that relative paths refer to."""
    if not isinstance(stage, RlStage):
        return False
    named = load_algorithm(stage.algorithm, base)
    return (named.kl_coef if stage.kl_coef is None else stage.kl_coef) > 0


def longest_sequence(stage: TrainedStage) -> int:
    return stage.max_prompt_tokens + stage.max_completion_tokens if isinstance(stage, RlStage) else stage.max_tokens
