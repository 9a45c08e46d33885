"""A model that would not obey the packed layout is refused before training; those that obey are let through, whatever their family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from grpo.errors import TrainingError
from grpo.trainer import attention
from grpo.trainer.attention import ATTENTION
from grpo.trainer.batch import make_batch
from grpo.trainer.layout_check import check_layout
from grpo.trainer.logprobs import completion_logprobs
from grpo.trainer.packing import pack
from grpo.trainer.policy_trainer import PolicyTrainer
from grpo.trainer.rope import rope_problem

SMALL = dict(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
LATENT = dict(kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, n_group=1, topk_group=1)
LAYERS = ["sliding_attention", "full_attention"]


def make(family: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, family + "Config")(**{**SMALL, **settings})
    return AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION).eval()


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("Llama", {}),
        ("Mistral", {"sliding_window": 4}),  # shorter than the longest of the proof's sequences, which have 12 tokens
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 4, "layer_types": LAYERS}),
        ("Qwen3", {"head_dim": 16}),
        ("Phi3", {"pad_token_id": 0}),
        ("Gemma3Text", {"head_dim": 16, "sliding_window": 4, "layer_types": LAYERS}),
        ("Qwen3Moe", EXPERTS),
        ("DeepseekV3", {**LATENT, "n_routed_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 4, "moe_intermediate_size": 16}),
    ],
)
def test_families_that_take_their_attention_from_the_table_obey(family: str, settings: dict[str, Any]) -> None:
    check_layout(make(family, **settings))


@pytest.mark.parametrize(
    ("family", "settings", "why"),
    [
        ("Gemma2", {"head_dim": 16}, "Gemma2ForCausalLM has final_logit_softcapping = 30.0, which the trainer does not compute"),
        ("Cohere", {"logit_scale": 0.0625}, "CohereForCausalLM has logit_scale = 0.0625, which the trainer does not compute"),
        ("Gemma2", {"head_dim": 16, "final_logit_softcapping": None}, "attention has softcap = 50.0, which the trainer does not compute"),
        ("Phi", {}, "PhiForCausalLM's output layer is not a plain linear layer without bias"),
        ("Mamba", {"state_size": 4}, "MambaForCausalLM's attention cannot be replaced by the trainer's"),
    ],
)
def test_what_the_trainer_would_compute_otherwise_is_refused(family: str, settings: dict[str, Any], why: str) -> None:
    with pytest.raises(TrainingError, match=why):
        check_layout(make(family, **settings))


DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 16}
OF_LAYERS = {"full_attention": DYNAMIC, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
FAR = {"initializer_range": 0.3}  # attention that looks at some tokens more than at others
BOUNDED = [
    ("Llama", {**FAR, "max_position_embeddings": 16, "rope_parameters": DYNAMIC}),
    ("Phi3", {**FAR, "pad_token_id": 0, "max_position_embeddings": 64, "original_max_position_embeddings": 16, "rope_parameters": LONG}),
]


def gap_beside(model: Any, length: int) -> float:
    """How much the log-probabilities of a short sequence move when one of ``length`` tokens is in the same micro-batch."""
    rng = np.random.default_rng(0)
    short, long = (rng.integers(0, 97, number).tolist() for number in (6, length - 2))
    alone, beside = make_batch([[1, 2]], [short]), make_batch([[1, 2], [3, 4]], [short, long])
    found = []
    for batch in (alone, beside):
        (packed,) = pack(batch, 200)
        with torch.no_grad():
            found.append(completion_logprobs(model, packed, 1.0, autocast=False)[0].numpy()[packed.sample == 0])
    return float(np.abs(found[0] - found[1]).max())


@pytest.mark.parametrize(("family", "settings"), BOUNDED)
def test_a_rope_type_that_follows_the_longest_sequence_is_refused_beyond_its_context(family: str, settings: dict[str, Any]) -> None:
    model = make(family, **settings)
    assert gap_beside(model, 16) < 1e-4
    check_layout(model, 16)
    assert gap_beside(make(family, **settings), 60) > 1e-2
    with pytest.raises(
        TrainingError, match=r"rope type '(dynamic|longrope)' is supported up to 16 tokens, and sequences may have 17; lower"
    ):
        check_layout(model, 17)


def test_other_rope_types_have_no_such_bound() -> None:
    model = make("Llama", **FAR, max_position_embeddings=64, rope_parameters=YARN)
    assert gap_beside(model, 60) < 1e-4
    check_layout(model, 10**6)


def test_a_rope_type_of_some_layers_bounds_all() -> None:
    config = make("Gemma3Text", head_dim=16, max_position_embeddings=16, layer_types=LAYERS, rope_parameters=OF_LAYERS).config
    assert rope_problem(config, 16) is None and "'dynamic'" in str(rope_problem(config, 17))


def test_a_token_that_sees_its_siblings_is_found(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model.float()
    check_layout(model)

    def flat_causal(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, scaling: float, **__: Any) -> Any:
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
        return out.transpose(1, 2), None

    monkeypatch.setitem(transformers.AttentionInterface._global_mapping, ATTENTION, flat_causal)
    with pytest.raises(TrainingError, match="other log-probabilities on packed tokens than on one sequence a row: they differ by [0-9.]+"):
        check_layout(model)
    assert transformers.AttentionInterface._global_mapping[ATTENTION] is not attention.tree_attention


def test_a_trainer_is_not_made_of_a_model_that_disobeys(
    make_trainer: Callable[..., PolicyTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def shuffled(*arguments: Any, **more: Any) -> Any:
        return attention.tree_attention(*arguments, **more)[0].flip(1), None

    monkeypatch.setitem(transformers.AttentionInterface._global_mapping, ATTENTION, shuffled)
    with pytest.raises(TrainingError, match="other log-probabilities on packed tokens"):
        make_trainer()
