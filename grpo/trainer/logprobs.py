"""What probability does the policy give to each completion token? A forward pass over packed tokens that builds logits only where they count."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from grpo.trainer.attention import AttentionBlocks
from grpo.trainer.head import target_logprobs
from grpo.trainer.packing import PackedPass

SCORE = "grpo_score"  # the method that stands for the forward pass of a sharded model


def completion_logprobs(model: PreTrainedModel, packed: PackedPass, temperature: float, autocast: bool = True) -> tuple[Tensor, Tensor]:
    """Of a model, sharded or not: see ``score``."""
    method = getattr(model, SCORE, None)
    return method(packed, temperature, autocast) if method is not None else score(model, packed, temperature, autocast)


def score(model: PreTrainedModel, packed: PackedPass, temperature: float, autocast: bool) -> tuple[Tensor, Tensor]:
    """Log-probability of each target of ``packed`` at the sampling temperature, [M], and the entropy [M] there (no gradient).

    The temperature belongs here: the engine sampled from softmax(logits / temperature), and the ratio compares with that distribution.
    Products are made in bfloat16 under ``autocast``, in the weights' own type without it, and in float64 for a float64 model.
    ``model`` was loaded with ``attn_implementation=grpo.trainer.attention.ATTENTION``.
    """
    device = next(model.parameters()).device
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
        hidden = model.base_model(
            input_ids=torch.from_numpy(packed.tokens).to(device)[None],
            position_ids=torch.from_numpy(packed.positions).to(device)[None],
            use_cache=False,
            layout=AttentionBlocks.of(packed, device),
        ).last_hidden_state
        hidden_MH = hidden[0, torch.from_numpy(packed.source).to(device)]
        target_M = torch.from_numpy(packed.target).to(device)
        return target_logprobs(hidden_MH, model.get_output_embeddings().weight, target_M, temperature)
