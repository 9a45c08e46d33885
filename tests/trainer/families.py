"""Tiny random models of the families that people train, and what the trainer says of each: that it computes it, or why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIZES = dict(vocab_size=262, num_hidden_layers=2, num_attention_heads=4, hidden_size=32, max_position_embeddings=256)
ENDS = dict(pad_token_id=261, bos_token_id=None, eos_token_id=260)
USUAL = dict(**SIZES, **ENDS, intermediate_size=48, num_key_value_heads=2)
OF_GPT2 = dict(vocab_size=262, n_embd=32, n_layer=2, n_head=4, n_positions=256, **ENDS)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
LATENT = dict(kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, n_group=1, topk_group=1)
DROPOUT = 0.2

# Dropout wherever a family has it: it must not matter.
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {**USUAL, "attention_dropout": DROPOUT},
    "Mistral": {**USUAL, "sliding_window": 4},
    "Qwen2": {**USUAL, "tie_word_embeddings": True},
    "Qwen3": {**USUAL, "head_dim": 8},
    "Gemma": {**USUAL, "head_dim": 8},
    "Gemma2": {**USUAL, "head_dim": 8},
    "Gemma3Text": {**USUAL, "head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "Phi3": {**USUAL, "resid_pdrop": DROPOUT, "embd_pdrop": DROPOUT},
    "GPT2": {**OF_GPT2, "resid_pdrop": DROPOUT, "embd_pdrop": DROPOUT, "attn_pdrop": DROPOUT},
    "OPT": {**SIZES, **ENDS, "ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": DROPOUT},
    "GPTNeoX": {**USUAL, "hidden_dropout": DROPOUT},
    "Falcon": {**SIZES, **ENDS, "hidden_dropout": DROPOUT},
    "Bloom": {"vocab_size": 262, "hidden_size": 32, "n_layer": 2, "n_head": 4, **ENDS},
    "GPTJ": {**OF_GPT2, "rotary_dim": 4},
    "Olmo2": USUAL,
    "SmolLM3": USUAL,
    "Granite": {**USUAL, "attention_multiplier": 0.3, "residual_multiplier": 0.5, "embedding_multiplier": 2.0},
    "Glm": {**USUAL, "head_dim": 8},
    "Starcoder2": {**USUAL, "residual_dropout": DROPOUT, "embedding_dropout": DROPOUT, "sliding_window": 4},
    "Mixtral": {**USUAL, "num_local_experts": 4, "num_experts_per_tok": 2, "router_jitter_noise": DROPOUT},
    "Qwen3Moe": {**USUAL, **EXPERTS, "head_dim": 8},
    "DeepseekV3": {
        **USUAL,
        **LATENT,
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
    },
}
REFUSED = {
    "Gemma2": "Gemma2ForCausalLM has final_logit_softcapping = 30.0, which the trainer does not compute; choose another model",
    "Falcon": "the attention of falcon models cannot be replaced by the trainer's",
    "Bloom": "BloomForCausalLM's attention cannot be replaced by the trainer's",
    "GPTJ": "the attention of gptj models cannot be replaced by the trainer's",
}
TRAINED = [family for family in FAMILIES if family not in REFUSED]


def config_of(family: str) -> Any:
    import transformers

    return getattr(transformers, f"{family}Config")(**FAMILIES[family])


def write_family(family: str, tokenizer: Any, folder: Path) -> Path:
    """A folder of the family's model in bfloat16, of weights that tell tokens apart."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config_of(family))
        for weight in model.parameters():
            weight.data += 0.1 * torch.randn_like(weight)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer += 5 + 0.05 * torch.randn_like(buffer)  # as released models have it: bfloat16 would choose other experts
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
