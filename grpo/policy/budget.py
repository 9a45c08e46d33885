"""How much memory does a trainer take, and how many tokens fit one pass? From shapes, never from timings, so that a run repeats.

Weights, gradients and optimiser are counted from the model without its weights. What a token leaves behind for the way back was measured on
two CPU cores with models of 4M to 135M parameters (2026-11-22): between 0.84 and 1.17 of the formula in ``activation_bytes``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from grpo.config import Optimiser, Trainer
from grpo.errors import TrainingError
from grpo.policy.adapters import add_adapters

ENOUGH_TOKENS = {"cpu": 2048, "cuda": 32768}  # of a pass: more do not make a large model's matrix products faster
CHEAP_BYTES = (
    2**30
)  # a small model's pass may hold more tokens as long as they take no more than this: fewer calls of many small operations
MOST_TOKENS = 8192
USED_FRAC = 0.8  # of what is free: estimates err, and allocators keep some for themselves
HEAD_BYTES = 2**29  # logits of a pass, and their gradient


@dataclass(frozen=True)
class Footprint:
    """Bytes that one rank holds before it sees a token, and those that each token of a pass adds."""

    weights: int
    reference: int
    gradients: int
    optimiser: int
    per_token: int
    num_parameters: int

    @property
    def fixed(self) -> int:
        return self.weights + self.reference + self.gradients + self.optimiser + HEAD_BYTES

    def tokens_within(self, free_bytes: float, device: str) -> int:
        """Tokens of a pass in ``free_bytes``; 0 where not even the fixed part fits."""
        fitting = int(USED_FRAC * max(0.0, free_bytes - self.fixed)) // self.per_token
        return min(fitting, max(ENOUGH_TOKENS[device], min(MOST_TOKENS, CHEAP_BYTES // self.per_token)))

    def in_words(self) -> str:
        gib = lambda number: f"{number / 2**30:.1f}"  # noqa: E731
        parts = f"weights {gib(self.weights)}, gradients {gib(self.gradients)}, optimiser {gib(self.optimiser)}"
        more = f", reference {gib(self.reference)}" if self.reference else ""
        return f"{parts}{more} GiB, and {self.per_token / 2**20:.2f} MiB for each token of a pass"


def footprint(model: Path, optimiser: Optimiser, layout: Trainer, needs_reference: bool, device: str) -> Footprint:
    """Of one rank that trains the model of folder ``model``. Raises TrainingError where adapters match no layer."""
    config = AutoConfig.from_pretrained(model)
    with torch.device("meta"):
        empty: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        if optimiser.lora is not None:
            add_adapters(empty, optimiser.lora, seed=0)
    parameters = sum(p.numel() for p in empty.parameters())
    trained = sum(p.numel() for p in empty.parameters() if p.requires_grad)
    shared_out = layout.ranks if layout.shard != "none" else 1
    layers = config.get_text_config().num_hidden_layers
    rounded = 2 * parameters if layout.precision == "bfloat16" else 0  # autocast's copy, or what a layer is gathered in
    gathered = rounded if layout.shard != "parameters" else 2 * rounded // layers
    moments = 0 if layout.offload_optimiser and device == "cuda" else 8 * trained
    return Footprint(
        weights=4 * parameters // shared_out + gathered,
        reference=4 * parameters // shared_out if needs_reference and optimiser.lora is None else 0,
        gradients=4 * trained // shared_out,
        optimiser=moments // shared_out,
        per_token=activation_bytes(config, optimiser.gradient_checkpointing),
        num_parameters=parameters,
    )


def activation_bytes(config: PretrainedConfig, checkpointed: bool) -> int:
    """What a token leaves behind for the way back, under bfloat16 autocast: a layer's inputs and outputs, as autograd saves them.

    Checkpointing keeps a layer's input, in float32, and works on one layer at a time; six layers' worth were measured at its peak.
    """
    text = config.get_text_config()
    hidden, layers, heads = text.hidden_size, text.num_hidden_layers, text.num_attention_heads
    size = getattr(text, "head_dim", None) or hidden // heads
    key = size * (getattr(text, "num_key_value_heads", None) or heads)
    routed = getattr(text, "num_experts_per_tok", None)
    width = routed * text.moe_intermediate_size if routed and hasattr(text, "moe_intermediate_size") else text.intermediate_size
    of_a_layer = 30 * hidden + 14 * (heads * size + key) + 9 * width
    return 4 * hidden * layers + 6 * of_a_layer if checkpointed else (layers + 1) * of_a_layer


def settled_tokens(needed: Footprint, longest: int, free_bytes: float, device: str) -> int:
    """Tokens of a pass for sequences of at most ``longest``. Raises TrainingError, with numbers, where one such sequence does not fit."""
    if needed.fixed + longest * needed.per_token <= free_bytes:
        return max(longest, needed.tokens_within(free_bytes, device))
    room = free_bytes / 2**30
    raise TrainingError(
        f"a sequence of {longest} tokens does not fit: a trainer of {needed.num_parameters / 1e6:.0f}M parameters holds {needed.in_words()}, "
        f"and {room:.1f} GiB are free for it; shorten completions, set gradient_checkpointing: true, train with lora, share out with "
        "trainer.shard, or write tokens_per_device yourself to try it all the same"
    )
