"""How long does a stage take? Its work divided by rates: those that the recipe states of its hardware, or those measured on this machine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from grpo.config import Hardware, Recipe
from grpo.plan.work import Drawing, Training

OPTIMISER_BYTES = 28  # read and written for each weight: the weight, its gradient, two moments


@dataclass(frozen=True)
class Rates:
    """Of one device.

    flops_per_s         bfloat16 products of the trainer
    bytes_per_s         of memory read and written
    layer_pass_s        what a layer of a pass costs besides, there and back
    engine_layer_s      what a layer costs an engine for each token step, however few sequences it draws
    engine_token_s      what a token costs it besides
    """

    flops_per_s: float
    bytes_per_s: float
    layer_pass_s: float = 0.0
    engine_layer_s: float | None = None
    engine_token_s: float = 0.0
    are_measured: bool = False


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


def seconds_of_update(training: Training, tokens_per_pass: int, trained: int, recipe: Recipe, rates: Rates) -> float:
    """One update: products shared out over ranks, the passes' own cost, and the optimiser's way through memory."""
    ranks = recipe.trainer.ranks
    passes = math.ceil(training.tokens / ranks / tokens_per_pass)
    overhead = passes * training.model.layers * rates.layer_pass_s * training.forwards / 3
    shared_out = ranks if recipe.trainer.shard != "none" else 1
    return training.flops / ranks / rates.flops_per_s + overhead + OPTIMISER_BYTES * trained / shared_out / rates.bytes_per_s


def seconds_of_drawing(drawing: Drawing, recipe: Recipe, rates: Rates) -> float:
    """One call: as many token steps as the longest completion has, for each wave of sequences, and what tokens add.

    A step reads all weights; each token is two operations a weight, and reads the keys and values of what it sees.
    """
    workers, model = recipe.rollout.workers, drawing.model
    steps = math.ceil(drawing.sequences / workers / recipe.rollout.max_sequences) * drawing.longest
    tokens = drawing.sequences * drawing.completion / workers
    weight_bytes = 2 if recipe.rollout.dtype == "bfloat16" else 4
    prefill = 2 * model.parameters * drawing.prompt * drawing.sequences / drawing.samples_per_prompt / workers / rates.flops_per_s
    if rates.engine_layer_s is not None:
        return steps * model.layers * rates.engine_layer_s + tokens * rates.engine_token_s + prefill
    step_s = weight_bytes * model.parameters / rates.bytes_per_s
    seen_s = model.cache_bytes_per_token * (drawing.prompt + drawing.completion / 2) / rates.bytes_per_s
    return steps * step_s + tokens * (2 * model.parameters / rates.flops_per_s + seen_s) + prefill


def seconds_of_stage(
    drawings: list[Drawing], training: Training | None, tokens_per_pass: int | None, trained: int, recipe: Recipe, rates: Rates
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
