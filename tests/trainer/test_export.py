"""What is handed out has the names and values of an ordinary checkpoint, also where transformers keeps them otherwise in memory."""

from __future__ import annotations

from pathlib import Path

import torch

from grpo.algorithm import GRPO
from grpo.config import OptimizerKeys
from grpo.trainer.policy_trainer import PolicyTrainer, TrainerSpec
from rollout.weight_sync.proof import read_safetensors
from rollout.weight_sync.weights import unpack_weights


def test_experts_are_handed_out_one_by_one(tmp_path: Path, tokenizer) -> None:
    # In memory: mlp.experts.gate_up_proj of [experts, 2 * width, hidden]. In a checkpoint: a matrix for each expert and projection.
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
    )
    Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    expected = read_safetensors(tmp_path)
    assert "model.layers.0.mlp.experts.3.gate_proj.weight" in expected
    trainer = PolicyTrainer(TrainerSpec(tmp_path, OptimizerKeys(), 1, GRPO))
    exported = unpack_weights(trainer.export_weights(1))
    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[name], weight) for name, weight in expected.items())
    trainer.save(tmp_path / "again")
    saved = read_safetensors(tmp_path / "again")
    assert saved.keys() == expected.keys() and all(torch.equal(saved[name], weight) for name, weight in expected.items())
