"""What probability does the policy give to each completion token? A forward pass over packed rows that builds logits only where they count."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from grpo.policy.packing import PackedRows, tree_mask

LOGITS_PER_CHUNK = 2**25  # 128 MiB of float32 logits are alive at a time


def completion_logprobs(
    model: PreTrainedModel, rows: PackedRows, temperature: float, with_entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each target of ``rows`` at the sampling temperature, float32 [N], and the entropy [N] there (no gradient).

    The temperature belongs here: the engine sampled from softmax(logits / temperature), and the ratio compares with that distribution.
    """
    device = next(model.parameters()).device
    segment, parent = torch.from_numpy(rows.segment).to(device), torch.from_numpy(rows.parent).to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        hidden = model.base_model(
            input_ids=torch.from_numpy(rows.tokens).to(device),
            attention_mask=tree_mask(segment, parent),
            position_ids=torch.from_numpy(rows.positions).to(device),
            use_cache=False,
        ).last_hidden_state
        hidden_NH = hidden.flatten(0, 1)[torch.from_numpy(rows.source).to(device)]
        target_N = torch.from_numpy(rows.target).to(device)
        return _in_chunks(model.get_output_embeddings(), hidden_NH, target_N, temperature, with_entropy)


def _in_chunks(
    head: torch.nn.Module, hidden_NH: Tensor, target_N: Tensor, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Chunks of logits are computed, reduced to one number a token, thrown away, and computed again on the way back."""
    per_chunk = max(1, LOGITS_PER_CHUNK // head.weight.shape[0])
    parts, entropies = [], []
    for hidden, target in zip(hidden_NH.split(per_chunk), target_N.split(per_chunk), strict=True):
        if torch.is_grad_enabled() and len(hidden_NH) > per_chunk:
            logprob, entropy = checkpoint(_reduce, head, hidden, target, temperature, with_entropy, use_reentrant=False)
        else:
            logprob, entropy = _reduce(head, hidden, target, temperature, with_entropy)
        parts.append(logprob)
        entropies.append(entropy)
    if not parts:
        return hidden_NH.new_zeros(0, dtype=torch.float32), None
    return torch.cat(parts), torch.cat(entropies) if with_entropy else None


def _reduce(head: torch.nn.Module, hidden: Tensor, target: Tensor, temperature: float, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
    logits = head(hidden).float() / temperature
    normaliser = logits.logsumexp(dim=-1)
    entropy = None
    if with_entropy:
        with torch.no_grad():
            entropy = normaliser - (torch.softmax(logits, dim=-1) * logits).sum(dim=-1)
    return logits.gather(-1, target[:, None]).squeeze(-1) - normaliser, entropy
