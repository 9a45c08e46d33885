"""How long does a stage take? By rates that the recipe states of its hardware, or by what was measured on this machine.

Stated rates divide the work. Measured costs are seconds for a unit of each quantity that an update's or a draw's time is made of, fitted to
updates and draws of several sizes, lengths and models (``measure``); the time of another is the sum of its quantities at these costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from grpo.config import Hardware, Recipe
from grpo.plan.work import Drawing, Training

OPTIMIZER_BYTES = 28  # read and written for each weight: the weight, its gradient, two moments


@dataclass(frozen=True)
class Rates:
    """Of one device, as stated: bfloat16 products, and bytes of memory read and written."""

    flops_per_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Costs:
    """Of this machine, as measured: seconds for a unit of what ``update_quantities`` and ``draw_quantities`` name."""

    update: Mapping[str, float]
    draw: Mapping[str, float]
    bytes_per_s: float


def update_quantities(training: Training, passes: float) -> dict[str, float]:
    """``passes``: how many the tokens are shared out over. Each has operations of its own in every layer, and so has each prompt's attention."""
    tokens = training.forwards * training.tokens
    return {
        "products": training.products,
        "attention": training.attention,
        "activation_bytes": tokens * training.model.activation_bytes_per_token,
        "tokens": tokens,
        "prompt_layers": training.forwards * training.prompts * training.model.layers,
        "pass_layers": training.forwards * passes * training.model.layers,
    }


def draw_quantities(drawing: Drawing, max_sequences: int) -> dict[str, float]:
    """Of one engine that draws it all. A token step has its own cost, and so has each sequence in it."""
    model = drawing.model
    steps = math.ceil(drawing.sequences / max_sequences) * drawing.longest
    tokens = drawing.sequences * drawing.completion
    computed = tokens + drawing.sequences / drawing.samples_per_prompt * drawing.prompt  # a prompt is computed once
    return {
        "steps": steps,
        "step_layers": steps * model.layers,
        "tokens": tokens,
        "token_layers": computed * model.layers,
        "token_parameters": computed * model.parameters,
        "seen_bytes": tokens * (drawing.prompt + drawing.completion / 2) * model.cache_bytes_per_token,
    }


def at_cost(quantities: Mapping[str, float], costs: Mapping[str, float]) -> float:
    return sum(quantity * costs[name] for name, quantity in quantities.items())


@dataclass(frozen=True)
class Seconds:
    """Of a whole stage."""

    drawing: float
    evaluation: float
    training: float

    @property
    def total(self) -> float:
        return self.drawing + self.evaluation + self.training


def stated_rates(hardware: Hardware) -> Rates | None:
    """None where the recipe does not state both: half a rate would be half a time."""
    if hardware.tflops is None or hardware.bandwidth_gb_s is None:
        return None
    return Rates(hardware.tflops * 1e12, hardware.bandwidth_gb_s * 1e9)


def seconds_of_update(training: Training, tokens_per_pass: int, trained: int, recipe: Recipe, rates: Rates | Costs) -> float:
    """One update: its work shared out over ranks, and the optimizer's way through memory."""
    ranks = recipe.trainer.ranks
    shared_out = ranks if recipe.trainer.shard != "none" else 1
    optimizer = OPTIMIZER_BYTES * trained / shared_out / rates.bytes_per_s
    if isinstance(rates, Costs):
        passes = ranks * math.ceil(training.tokens / ranks / tokens_per_pass)
        return at_cost(update_quantities(training, passes), rates.update) / ranks + optimizer
    return training.flops / ranks / rates.flops_per_s + optimizer


def seconds_of_drawing(drawing: Drawing, recipe: Recipe, rates: Rates | Costs) -> float:
    """One call: as many token steps as the longest completion has, for each wave of sequences, and what tokens add.

    By stated rates a step reads all weights; each token is two operations a weight, and reads the keys and values of what it sees.
    """
    of_one = replace(drawing, sequences=drawing.sequences / recipe.rollout.workers)
    quantities = draw_quantities(of_one, recipe.rollout.max_sequences)
    if isinstance(rates, Costs):
        return at_cost(quantities, rates.draw)
    weight_bytes = 2 if recipe.rollout.dtype == "bfloat16" else 4
    read = quantities["steps"] * weight_bytes * drawing.model.parameters + quantities["seen_bytes"]
    return read / rates.bytes_per_s + 2 * quantities["token_parameters"] / rates.flops_per_s


def seconds_of_stage(
    drawings: list[Drawing], training: Training | None, tokens_per_pass: int | None, trained: int, recipe: Recipe, rates: Rates | Costs
) -> Seconds:
    drawing = sum(d.times * seconds_of_drawing(d, recipe, rates) for d in drawings if d.what != "evaluation")
    evaluation = sum(d.times * seconds_of_drawing(d, recipe, rates) for d in drawings if d.what == "evaluation")
    updates = 0.0
    if training is not None:
        assert tokens_per_pass is not None, "a stage that trains has passes"
        updates = training.updates * seconds_of_update(training, tokens_per_pass, trained, recipe, rates)
    return Seconds(drawing, evaluation, updates)


def in_words(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.1f} days"
