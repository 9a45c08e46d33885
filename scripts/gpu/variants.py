"""Changes to the trainer that may make an update faster on a GPU. Each is a context manager that restores what it changed.

    large_head         logits of many more rows in one matrix product
    fused_head         the same, and torch.compile fuses the elementwise operations between the products
    varlen             torch's variable-length flash attention: queries stay in place, keys and values are gathered once
    bf16_stream        activations between layers are bfloat16, as they are in the engine
    compiled_layers    torch.compile fuses each layer's elementwise operations; attention is left out
    compiled_pointwise the toolkit's own trainer.compile

These are experiments. A change that pays on a real GPU belongs in grpo/trainer, with a test.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface

from grpo.trainer import attention, head, policy_trainer

# ------------------------------------------------------------------------------------------------------------------------- head


@contextmanager
def large_head(max_logits: int) -> Iterator[None]:
    """At most ``max_logits`` logits in one product, half as many in float32 at a time, and none kept for the backward pass."""
    before = head.LOGITS_PER_PRODUCT, head.LOGITS_IN_CACHE, head.MAX_KEPT_LOGITS
    head.LOGITS_PER_PRODUCT, head.MAX_KEPT_LOGITS = max_logits, 0
    head.LOGITS_IN_CACHE = dict.fromkeys(head.LOGITS_IN_CACHE, max_logits // 2)
    try:
        yield
    finally:
        head.LOGITS_PER_PRODUCT, head.LOGITS_IN_CACHE, head.MAX_KEPT_LOGITS = before


@contextmanager
def fused_head(max_logits: int) -> Iterator[None]:
    """The log-prob head recomputes its logits in the backward pass, and its elementwise operations are compiled into one kernel."""
    before, _FusedHead.max_logits = head._TargetLogprobs, max_logits
    head._TargetLogprobs = _FusedHead  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        head._TargetLogprobs = before  # type: ignore[misc]


def _logprobs_of_rows(logits_NV: Tensor, target_N: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-prob of the target, log of the normalizer, entropy: [N] each."""
    z_NV = logits_NV.float() / temperature
    highest_N1 = z_NV.amax(-1, keepdim=True)
    weights_NV = (z_NV - highest_N1).exp()
    total_N = weights_NV.sum(-1)
    normalizer_N = highest_N1.squeeze(-1) + total_N.log()
    entropy_N = normalizer_N - (weights_NV * z_NV).sum(-1) / total_N
    target_logit_N = logits_NV.gather(-1, target_N[:, None]).squeeze(-1).float() / temperature
    return target_logit_N - normalizer_N, normalizer_N, entropy_N


def _gradient_of_rows(logits_NV: Tensor, target_N: Tensor, normalizer_N: Tensor, scale_N: Tensor, temperature: float) -> Tensor:
    """(onehot(target) - softmax(z)) * scale, without a scatter, so that it is one elementwise kernel: [N, V]."""
    z_NV = logits_NV.float() / temperature
    is_target_NV = torch.arange(logits_NV.shape[-1], device=logits_NV.device)[None] == target_N[:, None]
    return ((is_target_NV.float() - (z_NV - normalizer_N[:, None]).exp()) * scale_N[:, None]).to(logits_NV.dtype)


class _FusedHead(torch.autograd.Function):
    """grpo.trainer.head's function with the arguments and results of the original."""

    max_logits = 2**30
    logprobs_of_rows = staticmethod(torch.compile(_logprobs_of_rows, dynamic=True))
    gradient_of_rows = staticmethod(torch.compile(_gradient_of_rows, dynamic=True))

    @classmethod
    def slices(cls, num_rows: int, vocabulary: int) -> Iterator[slice]:
        rows = max(1, cls.max_logits // vocabulary)
        for start in range(0, num_rows, rows):
            yield slice(start, min(start + rows, num_rows))

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, target_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        logprob_N, entropy_N, normalizer_N = (hidden_NH.new_empty(len(hidden_NH), dtype=torch.float32) for _ in range(3))
        for rows in _FusedHead.slices(len(hidden_NH), len(weight_VH)):
            found = _FusedHead.logprobs_of_rows(hidden_NH[rows] @ weight_VH.T, target_N[rows], temperature)
            logprob_N[rows], normalizer_N[rows], entropy_N[rows] = found
        ctx.save_for_backward(hidden_NH, weight_VH, target_N, normalizer_N)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy_N)
        return logprob_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, target_N, normalizer_N = ctx.saved_tensors
        scale_N = grads[0] / ctx.temperature
        grad_hidden_NH = torch.empty_like(hidden_NH)
        grad_weight_VH: Tensor | None = None
        for rows in _FusedHead.slices(len(hidden_NH), len(weight_VH)):
            logits_NV = hidden_NH[rows] @ weight_VH.T
            grad_NV = _FusedHead.gradient_of_rows(logits_NV, target_N[rows], normalizer_N[rows], scale_N[rows], ctx.temperature)
            torch.mm(grad_NV, weight_VH, out=grad_hidden_NH[rows])
            if ctx.needs_input_grad[1]:
                part_VH = grad_NV.T @ hidden_NH[rows]
                grad_weight_VH = part_VH if grad_weight_VH is None else grad_weight_VH.float().add_(part_VH)
        return grad_hidden_NH, grad_weight_VH, None, None


# -------------------------------------------------------------------------------------------------------------------- attention


@dataclass(frozen=True)
class VarlenLayout:
    """The segments of a micro-batch (prompts and completions) as sequences of queries, each with its prompt's keys before its own.

    ``blocks`` and ``sequences`` are empty; the toolkit's attention looks at them. Offsets are cumulative lengths with a leading 0.
    """

    key_positions: Tensor | None  # where the keys are in the micro-batch; None where they are in the order of the queries
    query_offsets: Tensor
    key_offsets: Tensor
    longest: tuple[int, int]  # queries, keys
    blocks: tuple[()] = ()
    sequences: tuple[()] = ()

    @staticmethod
    def of(packed: Any, device: torch.device) -> VarlenLayout:
        segments = sorted(_segments(packed), key=lambda segment: int(segment[0][0]))
        positions = np.concatenate([own for own, _ in segments])
        assert (positions == np.arange(len(packed.tokens))).all(), "segments are contiguous and cover the micro-batch"
        queries = [len(own) for own, _ in segments]
        keys = [len(own) + len(prefix) for own, prefix in segments]
        key_positions = None
        if keys != queries:
            gathered = np.concatenate([np.concatenate([prefix, own]) for own, prefix in segments])
            key_positions = torch.from_numpy(gathered).to(device)
        return VarlenLayout(key_positions, _offsets(queries, device), _offsets(keys, device), (max(queries), max(keys)))


def _segments(packed: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(positions of the segment, positions of the prompt it attends to) of every prompt and completion."""
    for block in packed.blocks:
        for prefix, completions in zip(block.prefix, block.own, strict=True):
            for own in completions:
                if own[0] >= 0:
                    yield own[own >= 0], prefix[prefix >= 0]


def _offsets(lengths: list[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=device)


def varlen_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: VarlenLayout,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The signature of grpo.trainer.attention.tree_attention."""
    del module, attention_mask, others
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    dtype = value.dtype if value.dtype in (torch.float32, torch.float64) else torch.bfloat16
    q, k, v = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))  # [N, heads, D]
    if layout.key_positions is not None:
        k, v = k.index_select(0, layout.key_positions), v.index_select(0, layout.key_positions)
    attend = _flash if q.is_cuda and dtype == torch.bfloat16 else _segment_by_segment
    return attend(q, k, v, layout, scale, sliding_window).unsqueeze(0), None


def _flash(q: Tensor, k: Tensor, v: Tensor, layout: VarlenLayout, scale: float, window: int | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    takes_gqa = "enable_gqa" in inspect.signature(varlen_attn).parameters  # newer torch wants to be told
    options: dict[str, Any] = {"enable_gqa": q.shape[1] != k.shape[1]} if takes_gqa else {}
    window_size = (-1 if window is None else window - 1, 0)
    offsets = layout.query_offsets, layout.key_offsets
    return varlen_attn(q, k, v, *offsets, *layout.longest, scale=scale, window_size=window_size, **options)  # type: ignore[return-value]


def _segment_by_segment(q: Tensor, k: Tensor, v: Tensor, layout: VarlenLayout, scale: float, window: int | None) -> Tensor:
    """The same result where there is no such kernel: on a CPU, and in float32."""
    outputs = []
    repeats = q.shape[1] // k.shape[1]
    queries = q.tensor_split(layout.query_offsets[1:-1].tolist())
    keys, values = (x.tensor_split(layout.key_offsets[1:-1].tolist()) for x in (k, v))
    for own_q, own_k, own_v in zip(queries, keys, values, strict=True):
        last = len(own_k) - len(own_q)  # the mask is causal from the end: the last query sees the last key
        distance = torch.arange(len(own_q), device=q.device)[:, None] + last - torch.arange(len(own_k), device=q.device)[None]
        visible = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        all_k, all_v = (x.transpose(0, 1).repeat_interleave(repeats, 0) for x in (own_k, own_v))
        out = torch.nn.functional.scaled_dot_product_attention(own_q.transpose(0, 1), all_k, all_v, attn_mask=visible, scale=scale)
        outputs.append(out.transpose(0, 1))
    return torch.cat(outputs)


@contextmanager
def varlen() -> Iterator[None]:
    before = attention.AttentionBlocks.of
    attention.AttentionBlocks.of = staticmethod(VarlenLayout.of)  # type: ignore[method-assign, assignment]
    AttentionInterface.register(attention.ATTENTION, varlen_attention)
    try:
        yield
    finally:
        attention.AttentionBlocks.of = staticmethod(before)  # type: ignore[method-assign]
        AttentionInterface.register(attention.ATTENTION, attention.tree_attention)


# ----------------------------------------------------------------------------------------------------------------------- layers


@contextmanager
def bf16_stream(model: Any) -> Iterator[None]:
    """Embeddings and norms return bfloat16, so that the residual stream and what the norms read are bfloat16 too."""
    norms = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]
    handles = [module.register_forward_hook(lambda *call: call[2].bfloat16()) for module in (model.get_input_embeddings(), *norms)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def compiled_layers(model: Any) -> Iterator[None]:
    """Afterwards the layers run uncompiled again; what the compiler cached stays in the process."""
    current = AttentionInterface()[attention.ATTENTION]
    AttentionInterface.register(attention.ATTENTION, torch._dynamo.disable(current))
    try:
        with _compiled(list(model.base_model.layers), lambda layers: [layer.compile(dynamic=True) for layer in layers]):
            yield
    finally:
        AttentionInterface.register(attention.ATTENTION, current)


@contextmanager
def compiled_pointwise(model: Any) -> Iterator[None]:
    modules = [module for module in model.modules() if type(module).__name__.endswith(("RMSNorm", "MLP"))]
    with _compiled(modules, lambda _: policy_trainer._compile_pointwise(model)):
        yield


@contextmanager
def _compiled(modules: list[Any], compile_all: Callable[[list[Any]], Any]) -> Iterator[None]:
    compile_all(modules)
    try:
        yield
    finally:
        for module in modules:
            module._compiled_call_impl = None
