"""How do hidden states become log-probabilities of given tokens, when N x V logits in float32 would be the largest thing in memory?

    z = hidden W^T / temperature,   log pi(t) = z_t - logsumexp(z),   d log pi(t) / dz = onehot(t) - softmax(z)

Logits exist in the matrix product's own type and a few rows at a time in float32, small enough for a core's cache. The way back needs no
graph: the gradient above is written out, and the logits are kept for it where they are small, and computed again where they are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

LOGITS_PER_PRODUCT = 2**25  # in one matrix product: 64 MiB in bfloat16
LOGITS_IN_CACHE = {"cpu": 2**19, "cuda": 2**25}  # in float32 at a time
MAX_KEPT_LOGITS = 2**27  # 256 MiB in bfloat16; more are computed again on the way back


def target_logprobs(hidden_NH: Tensor, weight_VH: Tensor, target_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability of each target under softmax(hidden W^T / temperature), and the entropy there (no gradient): [N] each.

    The product is made in autocast's type where autocast is on, else in ``hidden_NH``'s own; the rest in float32, or in float64 for float64.
    """
    device = hidden_NH.device.type
    if torch.is_autocast_enabled(device) and hidden_NH.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        hidden_NH, weight_VH = hidden_NH.to(dtype), weight_VH.to(dtype)
    with torch.autocast(device, enabled=False):
        return _TargetLogprobs.apply(hidden_NH, weight_VH, target_N, temperature)


class _TargetLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, target_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        num, vocabulary = len(hidden_NH), len(weight_VH)
        exact = torch.promote_types(hidden_NH.dtype, torch.float32)
        logprob_N, entropy_N, normaliser_N = (hidden_NH.new_empty(num, dtype=exact) for _ in range(3))
        keep = any(ctx.needs_input_grad[:2]) and num * vocabulary <= MAX_KEPT_LOGITS
        kept: list[Tensor] = []
        for rows in _slices(num, LOGITS_PER_PRODUCT // vocabulary):
            logits = hidden_NH[rows] @ weight_VH.T
            for few in _slices(len(logits), LOGITS_IN_CACHE[logits.device.type] // vocabulary):
                here = slice(rows.start + few.start, rows.start + few.stop)
                scaled = _scaled(logits[few], temperature, exact)
                highest = scaled.amax(dim=-1)
                target = scaled.gather(-1, target_N[here, None]).squeeze(-1)
                weights = (scaled - highest[:, None]).exp_()
                total = weights.sum(dim=-1)
                normaliser_N[here] = highest + total.log()
                logprob_N[here] = target - normaliser_N[here]
                entropy_N[here] = normaliser_N[here] - torch.linalg.vecdot(weights, scaled) / total
            if keep:
                kept.append(logits)
        ctx.save_for_backward(hidden_NH, weight_VH, target_N, normaliser_N, *kept)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy_N)
        return logprob_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, target_N, normaliser_N, *kept = ctx.saved_tensors
        num, vocabulary = len(hidden_NH), len(weight_VH)
        scale_N = grads[0] / ctx.temperature
        grad_hidden_NH = torch.empty_like(hidden_NH)
        grad_weight_VH: Tensor | None = None
        for i, rows in enumerate(_slices(num, LOGITS_PER_PRODUCT // vocabulary)):
            logits = kept[i] if kept else hidden_NH[rows] @ weight_VH.T
            grad_logits = torch.empty_like(logits)
            for few in _slices(len(logits), LOGITS_IN_CACHE[logits.device.type] // vocabulary):
                here = slice(rows.start + few.start, rows.start + few.stop)
                scaled = _scaled(logits[few], ctx.temperature, normaliser_N.dtype)
                grad = (scaled - normaliser_N[here, None]).exp_().mul_(-scale_N[here, None])
                grad.scatter_add_(-1, target_N[here, None], scale_N[here, None])
                grad_logits[few] = grad
            torch.mm(grad_logits, weight_VH, out=grad_hidden_NH[rows])
            if not ctx.needs_input_grad[1]:
                continue
            part = grad_logits.T @ hidden_NH[rows]
            if grad_weight_VH is None:
                grad_weight_VH = part if num == len(logits) else part.to(normaliser_N.dtype)
            else:
                grad_weight_VH += part
        if grad_weight_VH is None and ctx.needs_input_grad[1]:
            grad_weight_VH = torch.zeros_like(weight_VH)  # of no targets: other ranks have some, and all must have a gradient
        return grad_hidden_NH, grad_weight_VH, None, None


def _scaled(logits: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
    scaled = logits.to(dtype)
    return scaled if temperature == 1.0 else scaled / temperature


def _slices(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, max(1, size)):
        yield slice(start, min(start + max(1, size), length))
