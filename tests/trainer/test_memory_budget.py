"""Memory from shapes: counted by hand for a model of two layers, and settled against what a machine has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from grpo.config import Lora, OptimizerKeys, Recipe, Trainer
from grpo.errors import RecipeError, TrainingError
from grpo.resources import token_budgets as budgets
from grpo.trainer.machine import Machine
from grpo.trainer.memory_budget import HEAD_BYTES, Footprint, footprint, settled_tokens

GIB = 2**30


def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def test_weights_gradients_and_moments_are_counted(tiny_llama: Path) -> None:
    # Untied: embeddings and output layer V x H each. A layer: q H x H, k and v H x H/2 (two heads share one), o H x H, three of H x I, two
    # norms. Then the last norm. Four bytes a weight, two for its rounded copy, of which embeddings that are no output layer have none; four for its
    # gradient, eight for AdamW's moments.
    c = config(tiny_llama)
    v, h, i, layers = c["vocab_size"], c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"]
    parameters = 2 * v * h + layers * (3 * h * h + 3 * h * i + 2 * h) + h
    found = footprint(tiny_llama, OptimizerKeys(), Trainer(), needs_reference=True, device="cpu")
    assert found.num_parameters == parameters
    assert found.weights == 6 * parameters - 2 * v * h
    assert (found.reference, found.gradients, found.optimizer) == tuple(parameters * n for n in (4, 4, 8))
    assert found.per_token == (layers + 1) * (30 * h + 14 * (h + h // 2) + 9 * i)


def test_what_takes_less_is_counted_as_less(tiny_llama: Path) -> None:
    def of(layout: Trainer = Trainer(), **settings: Any) -> Footprint:  # noqa: B008 - frozen
        return footprint(tiny_llama, OptimizerKeys(**settings), layout, needs_reference=True, device="cpu")

    whole, adapted = of(), of(lora=Lora(rank=2, targets=["q_proj"]))
    h, layers = config(tiny_llama)["hidden_size"], config(tiny_llama)["num_hidden_layers"]
    assert adapted.gradients == 4 * layers * (2 * h + h * 2) and adapted.reference == 0  # A and B of rank 2; the base is the reference
    halved, sharded = of(Trainer(ranks=2, shard="gradients")), of(Trainer(ranks=2, shard="parameters"))
    assert halved.optimizer == sharded.optimizer == whole.optimizer // 2 and sharded.weights <= halved.weights < whole.weights


def test_passes_grow_with_memory_up_to_what_products_need() -> None:
    needed = Footprint(GIB, 0, GIB, 2 * GIB, 2**20, 1)
    fixed = 4 * GIB + HEAD_BYTES
    assert settled_tokens(needed, 256, fixed + 2 * GIB, "cpu") == int(0.8 * 2048)
    assert settled_tokens(needed, 2040, fixed + 2 * GIB, "cpu") == 2040  # fits, though nothing is left to spare
    assert settled_tokens(needed, 256, 100 * GIB, "cpu") == 2048
    assert settled_tokens(needed, 6000, 100 * GIB, "cpu") == 6000
    small = Footprint(2**20, 0, 2**20, 2**21, 2**18, 1)  # 4,096 of its tokens take 1 GiB, and 32 times as many of a tinier one's would
    assert settled_tokens(small, 256, 100 * GIB, "cpu") == 4096
    assert settled_tokens(Footprint(1, 0, 1, 1, 2**13, 1), 256, 100 * GIB, "cpu") == 8192


def test_a_sequence_that_does_not_fit_is_refused_with_numbers_and_remedies() -> None:
    needed = Footprint(GIB, 0, GIB, 2 * GIB, 2**20, 250_000_000)
    with pytest.raises(TrainingError) as refused:
        settled_tokens(needed, 4096, 6 * GIB, "cpu")
    for words in (
        "4096 tokens",
        "250M parameters",
        "gradients 1.0, optimizer 2.0 GiB",
        "1.00 MiB for each",
        "6.0 GiB are free",
        "checkpointing",
    ):
        assert words in str(refused.value)


def test_a_rope_type_is_asked_for_its_bound_before_a_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every stage, also where max_tokens_per_micro_batch needs no settling."""
    LlamaConfig(max_position_embeddings=64, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}).save_pretrained(
        tmp_path
    )
    monkeypatch.setattr(budgets, "_this_machine", lambda: Machine(8 * GIB))
    stages = [
        {"name": "fits", "kind": "sft", "data": "p", "max_tokens": 64, "max_tokens_per_micro_batch": 64},
        {"name": "long", "kind": "sft", "data": "p", "max_tokens": 65, "max_tokens_per_micro_batch": 65, "from": "fits"},
        {"name": "rl", "kind": "rl", "prompts": "p", "rewards": [{"use": "math"}], "steps": 1, "max_prompt_tokens": 40}
        | {"max_completion_tokens": 30, "max_tokens_per_micro_batch": 70, "from": "long"},
    ]
    recipe = Recipe.model_validate({"name": "x", "model": "m", "data": {"p": {"jsonl": "p.jsonl"}}, "stages": stages})
    with pytest.raises(RecipeError) as refused:
        budgets.settle_all(recipe, tmp_path, tmp_path, {})
    assert [line.partition(";")[0] for line in refused.value.problems] == [
        "stage 'long': rope type 'dynamic' is supported up to 64 tokens, and sequences may have 65",
        "stage 'rl': rope type 'dynamic' is supported up to 64 tokens, and sequences may have 70",
    ]


def test_all_stages_that_do_not_fit_are_named_at_once(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "_this_machine", lambda: Machine(8 * GIB))
    rl = {"kind": "rl", "prompts": "p", "rewards": [{"use": "math"}], "steps": 1, "max_completion_tokens": 2_000_000}
    stages = [{"name": "a", **rl}, {"name": "b", **rl, "from": "a"}, {"name": "c", "kind": "sft", "data": "p"}]
    recipe = Recipe.model_validate({"name": "x", "model": "m", "data": {"p": {"jsonl": "p.jsonl"}}, "stages": stages})
    with pytest.raises(RecipeError) as refused:
        budgets.settle_all(recipe, tiny_llama, tiny_llama, {})
    assert "stage 'a': a sequence of 2000512 tokens" in str(refused.value) and "stage 'b'" in str(refused.value)
    short = recipe.model_copy(update={"stages": [recipe.stages[2]]})
    assert 1024 <= budgets.settle_all(short, tiny_llama, tiny_llama, {})["c"] <= 8192
    assert budgets.settle_all(short, tiny_llama, tiny_llama, {"c": 77}) == {"c": 77}  # as settled when the run began
    monkeypatch.setattr(budgets, "_this_machine", lambda: Machine(GIB))
    assert budgets.settle_all(short, tiny_llama, tiny_llama, {"c": 77}) == {"c": 77}  # on whatever it goes on
