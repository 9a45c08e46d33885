"""How does a token attend to its prompt and its own past, when a prompt stands once in a pass and several completions share it?

The tokens of a pass stand in one flat row without padding. For attention they are gathered into blocks (grpo.trainer.packing.Block): R prompts
with up to G completions each. A completion's scores are one product with the keys of its prompt, shared by all G, and one with its own keys.

The attention is registered with transformers under the name ATTENTION, and its blocks go through the model's keyword arguments, so every
architecture that takes its attention from transformers' table runs with it; grpo.trainer.layout_check shows it of a given model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from grpo.errors import TrainingError
from grpo.trainer.packing import Block, PackedPass

ATTENTION = "grpo_tree"
NO_TABLE = "it does not take its attention from transformers' table"


@dataclass(frozen=True)
class AttentionBlocks:
    """The blocks of a pass on its device. ``cuda`` uses rows of whole sequences instead: one causal flash kernel and no mask."""

    blocks: tuple[_BlockIndex, ...]
    sequences: tuple[_SequenceIndex, ...]

    @staticmethod
    def of(packed: PackedPass, device: torch.device) -> AttentionBlocks:
        if device.type == "cuda":
            return AttentionBlocks((), tuple(_SequenceIndex.of(rows, device) for rows in packed.sequences()))
        return AttentionBlocks(tuple(_BlockIndex.of(block, len(packed.tokens), device) for block in packed.blocks), ())


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: AttentionBlocks,
    scaling: float | None = None,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: query [1, heads, N, D], key and value [1, kv_heads, N, D] to [1, N, heads, D]."""
    del module, attention_mask
    for name in ("softcap", "s_aux"):
        if others.get(name) is not None:
            raise TrainingError(f"this model's attention has {name} = {others[name]}, which the trainer does not compute")
    assert dropout == 0.0, "a policy is trained without dropout: the ratio compares one distribution with itself"
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    q, k, v = query[0].contiguous(), key[0].contiguous(), value[0].contiguous()  # once, or every gather would copy them whole
    if layout.sequences:
        return _by_sequences(q, k, v, layout.sequences, scale, sliding_window).transpose(0, 1).unsqueeze(0), None
    with torch.autocast(query.device.type, enabled=False):
        return _TreeAttention.apply(q, k, v, layout.blocks, scale, sliding_window).transpose(0, 1).unsqueeze(0), None


AttentionInterface.register(ATTENTION, tree_attention)


def without_weights(config: PretrainedConfig, attention: str | None = None) -> PreTrainedModel:
    """The model of ``config`` on no device, with transformers' own attention or the one named. Raises TrainingError where there is none."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=attention)
    except Exception as error:  # somebody else's code, with settings from anywhere
        raise unmade(config.model_type, error) from error


def unmade(family: str, error: Exception) -> TrainingError:
    """Why transformers did not make a model of this family, in a line."""
    if ATTENTION in str(error):
        return TrainingError(f"the attention of {family} models cannot be replaced by the trainer's ({NO_TABLE}); choose another model")
    reason = (str(error) or type(error).__name__).splitlines()[0][:200]
    return TrainingError(f"transformers cannot make a {family} model of this config.json: {reason}; choose another model")


@contextmanager
def ordinary_attention(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The model with transformers' own attention, for rows of one sequence each."""
    model.set_attn_implementation("sdpa")
    try:
        yield model
    finally:
        model.set_attn_implementation(ATTENTION)


@dataclass(frozen=True)
class _BlockIndex:
    """A Block as indices. Padding reads token 0, or the zero behind the last token where it must not count, and is never written."""

    shape: tuple[int, int, int, int]  # R, G, completion tokens, prefix tokens
    own: Tensor  # [R * G * Lc], padding 0
    own_or_zero: Tensor  # [R * G * Lc], padding N
    prefix: Tensor  # [R * Lp], padding 0
    written: Tensor | None  # which of R * G * Lc are tokens; None for all
    written_to: Tensor  # their place in the pass
    read_prefix: Tensor | None  # which of R * Lp are tokens; None for all
    prefix_from: Tensor
    prefix_hidden: Tensor | None  # [R, 1, 1, 1, 1, Lp]: padding of the prefix
    prefix_lengths: Tensor  # [R]

    @staticmethod
    def of(block: Block, num_tokens: int, device: torch.device) -> _BlockIndex:
        own, prefix = torch.from_numpy(block.own).to(device), torch.from_numpy(block.prefix).to(device)
        own_real, prefix_real = own.flatten() >= 0, prefix.flatten() >= 0
        all_own, all_prefix = bool((block.own >= 0).all()), bool((block.prefix >= 0).all())
        return _BlockIndex(
            shape=(*own.shape, prefix.shape[1]),  # type: ignore[arg-type]
            own=own.flatten().clamp(min=0),
            own_or_zero=torch.where(own_real, own.flatten(), num_tokens),
            prefix=prefix.flatten().clamp(min=0),
            written=None if all_own else own_real.nonzero().squeeze(-1),
            written_to=own.flatten()[own_real],
            read_prefix=None if all_prefix else prefix_real.nonzero().squeeze(-1),
            prefix_from=prefix.flatten()[prefix_real],
            prefix_hidden=None if all_prefix else (prefix < 0)[:, None, None, None, None, :],
            prefix_lengths=(prefix >= 0).sum(dim=-1),
        )


class _TreeAttention(torch.autograd.Function):
    """softmax(q k^T scale) v of every block. Scores are computed again on the way back, so nothing of size T x T is kept."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[_BlockIndex], scale: float, window: int | None) -> Tensor:
        out = q.new_empty(q.shape[0], q.shape[1], v.shape[-1], dtype=v.dtype)
        for heads, few in _head_groups(q, k, blocks):
            for block in few:
                part = _Part.of(block, q[heads[0]], k[heads[1]], v[heads[1]], scale, window)
                out[heads[0]].index_copy_(1, block.written_to, _written(part.output(), block))
        ctx.save_for_backward(q, k, v, out)
        ctx.settings = (blocks, scale, window)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out = ctx.saved_tensors
        blocks, scale, window = ctx.settings
        grad_out = F.pad(grads[0].to(v.dtype), (0, 0, 0, 1)).contiguous()  # the zero that padding reads
        delta = F.pad((grads[0].to(_exact(q)) * out).sum(-1), (0, 1)).contiguous()
        grad_q = torch.empty_like(q)
        grad_k, grad_v = torch.zeros_like(k, dtype=_exact(k)), torch.zeros_like(v, dtype=_exact(v))
        for (own, shared), few in _head_groups(q, k, blocks):
            for block in few:
                part = _Part.of(block, q[own], k[shared], v[shared], scale, window)
                dq, (dk_own, dk_prefix), (dv_own, dv_prefix) = part.gradients(grad_out[own], delta[own])
                grad_q[own].index_copy_(1, block.written_to, _written(dq, block).to(q.dtype))
                _add(grad_k[shared], block.written_to, _written(dk_own, block))
                _add(grad_v[shared], block.written_to, _written(dv_own, block))
                if dk_prefix is not None and dv_prefix is not None:
                    _add(grad_k[shared], block.prefix_from, _read(dk_prefix, block))
                    _add(grad_v[shared], block.prefix_from, _read(dv_prefix, block))
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), None, None, None


MAX_SCORES = 2**24  # of one block and its heads at a time: 64 MiB in float32


def _head_groups(q: Tensor, k: Tensor, blocks: Sequence[_BlockIndex]) -> list[tuple[tuple[slice, slice], list[_BlockIndex]]]:
    """All heads of a block together, or one key-value head at a time where its scores would be too many."""
    num_kv, repeats = len(k), len(q) // len(k)

    def scores(block: _BlockIndex) -> int:
        rows, completions, tokens, prefix = block.shape
        return rows * completions * tokens * (tokens + prefix) * len(q)

    small = [block for block in blocks if scores(block) <= MAX_SCORES]
    large = [block for block in blocks if scores(block) > MAX_SCORES]
    groups = [((slice(0, len(q)), slice(0, num_kv)), small)] if small else []
    if large:
        groups += [((slice(h * repeats, (h + 1) * repeats), slice(h, h + 1)), large) for h in range(num_kv)]
    return groups


@dataclass
class _Part:
    """One block's queries, keys, values and probabilities: R rows, K key-value heads, G completions, M query heads to each of K."""

    block: _BlockIndex
    query: Tensor  # [R, K, G, M, Lc, D]
    keys: tuple[Tensor, Tensor]  # own [R, K, G, Lc, D], prefix [R, K, Lp, D]
    values: tuple[Tensor, Tensor]
    probabilities: Tensor  # [R, K, G, M, Lc, Lp + Lc]
    scale: float

    @staticmethod
    def of(block: _BlockIndex, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> _Part:
        rows, completions, tokens, prefix = block.shape
        num_kv, repeats = len(k), len(q) // len(k)
        query = _queries(q, block.own, block.shape, num_kv)
        keys, values = _keys(k, block), _keys(v, block)
        scores = query.new_empty(rows, num_kv, completions, repeats, tokens, prefix + tokens, dtype=_exact(q))
        exact = query.to(scores.dtype)
        if prefix:
            scores[..., :prefix] = (exact.flatten(2, 4) @ keys[1].to(scores.dtype).mT).view(*scores.shape[:-1], prefix)
        scores[..., prefix:] = (exact.flatten(3, 4) @ keys[0].to(scores.dtype).mT).view(*scores.shape[:-1], tokens)
        scores *= scale
        _hide(scores, block, window)
        return _Part(block, query, keys, values, torch.softmax(scores, dim=-1), scale)

    def output(self) -> Tensor:
        """[K * M, R * G * Lc, D]"""
        prefix = self.block.shape[3]
        weights = self.probabilities.to(self.values[0].dtype)
        out = (weights[..., prefix:].flatten(3, 4) @ self.values[0]).view(*weights.shape[:-1], -1)
        if prefix:
            out += (weights[..., :prefix].flatten(2, 4) @ self.values[1]).view_as(out)
        return _flat(out)

    def gradients(self, grad_out: Tensor, delta: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]:
        """Of the queries [K * M, R * G * Lc, D], and of keys and values, own [K, R * G * Lc, D] and the prefix's [K, R * Lp, D]."""
        prefix, (own_values, prefix_values) = self.block.shape[3], self.values
        product = own_values.dtype
        num_kv = self.query.shape[1]
        grad = _queries(grad_out, self.block.own_or_zero, self.block.shape, num_kv)
        grad_scores = torch.empty_like(self.probabilities)
        grad_scores[..., prefix:] = (grad.flatten(3, 4) @ own_values.mT).view(*grad_scores.shape[:-1], -1)
        if prefix:
            grad_scores[..., :prefix] = (grad.flatten(2, 4) @ prefix_values.mT).view(*grad_scores.shape[:-1], prefix)
        grad_scores -= _queries(delta.unsqueeze(-1), self.block.own_or_zero, self.block.shape, num_kv)
        grad_scores *= self.probabilities
        grad_scores *= self.scale
        weights, change = self.probabilities.to(product), grad_scores.to(product)
        query, own_keys = self.query.to(product), self.keys[0].to(product)
        grad_query = (change[..., prefix:].flatten(3, 4) @ own_keys).view_as(query)
        own = (
            change[..., prefix:].flatten(3, 4).mT @ query.flatten(3, 4),
            weights[..., prefix:].flatten(3, 4).mT @ grad.flatten(3, 4),
        )
        of_prefix: tuple[Tensor | None, Tensor | None] = (None, None)
        if prefix:
            change, weights = change[..., :prefix].flatten(2, 4), weights[..., :prefix].flatten(2, 4)
            grad_query += (change @ self.keys[1].to(product)).view_as(query)
            of_prefix = (_keys_flat(change.mT @ query.flatten(2, 4)), _keys_flat(weights.mT @ grad.flatten(2, 4)))
        return _flat(grad_query), (_keys_flat(own[0]), of_prefix[0]), (_keys_flat(own[1]), of_prefix[1])


def _queries(x: Tensor, index: Tensor, shape: tuple[int, int, int, int], num_kv: int) -> Tensor:
    """[K * M, N, D] to [R, K, G, M, Lc, D]"""
    rows, completions, tokens, _ = shape
    gathered = x.index_select(1, index).view(num_kv, len(x) // num_kv, rows, completions, tokens, x.shape[-1])
    return gathered.permute(2, 0, 3, 1, 4, 5).contiguous()


def _keys(x: Tensor, block: _BlockIndex) -> tuple[Tensor, Tensor]:
    rows, completions, tokens, prefix = block.shape
    own = x.index_select(1, block.own).view(len(x), rows, completions, tokens, x.shape[-1]).transpose(0, 1).contiguous()
    return own, x.index_select(1, block.prefix).view(len(x), rows, prefix, x.shape[-1]).transpose(0, 1).contiguous()


def _flat(x: Tensor) -> Tensor:
    """[R, K, G, M, Lc, D] to [K * M, R * G * Lc, D]"""
    rows, num_kv, completions, repeats, tokens, size = x.shape
    return x.permute(1, 3, 0, 2, 4, 5).reshape(num_kv * repeats, rows * completions * tokens, size)


def _keys_flat(x: Tensor) -> Tensor:
    """[R, K, ..., D] to [K, R * ..., D]"""
    return x.transpose(0, 1).flatten(1, -2)


def _hide(scores: Tensor, block: _BlockIndex, window: int | None) -> None:
    _, _, tokens, prefix = block.shape
    query, key = torch.arange(tokens, device=scores.device)[:, None], torch.arange(tokens, device=scores.device)[None]
    hidden = key > query
    if window is not None:
        hidden = hidden | (query - key >= window)
    scores[..., prefix:].masked_fill_(hidden, float("-inf"))
    if block.prefix_hidden is not None:
        scores[..., :prefix].masked_fill_(block.prefix_hidden, float("-inf"))
    if window is not None and prefix:
        position = block.prefix_lengths[:, None, None] + query[None]  # [R, Lc, 1]
        far = position - torch.arange(prefix, device=scores.device) >= window
        scores[..., :prefix].masked_fill_(far[:, None, None, None], float("-inf"))


def _written(x: Tensor, block: _BlockIndex) -> Tensor:
    return x if block.written is None else x.index_select(1, block.written)


def _read(x: Tensor, block: _BlockIndex) -> Tensor:
    return x if block.read_prefix is None else x.index_select(1, block.read_prefix)


def _add(total: Tensor, index: Tensor, part: Tensor) -> None:
    """total[:, index] += part. No place occurs twice in ``index``, so this repeats bit for bit on every device."""
    total.index_copy_(1, index, total.index_select(1, index) + part)


def _exact(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


# ---------------------------------------------------------------------------------------------------------------- whole sequences


@dataclass(frozen=True)
class _SequenceIndex:
    read: Tensor  # [B * T] places in the pass, padding 0
    shape: tuple[int, int]
    kept: Tensor  # which of B * T are a token's first occurrence (a prompt stands in the row of each of its completions)
    place: Tensor  # where those stand in the pass

    @staticmethod
    def of(rows: np.ndarray, device: torch.device) -> _SequenceIndex:
        flat = rows.ravel()
        place, first = np.unique(flat, return_index=True)
        real = place >= 0
        to = lambda array: torch.from_numpy(np.ascontiguousarray(array)).to(device)  # noqa: E731
        return _SequenceIndex(to(np.maximum(flat, 0)), rows.shape, to(first[real]), to(place[real]))


def _by_sequences(q: Tensor, k: Tensor, v: Tensor, sequences: Sequence[_SequenceIndex], scale: float, window: int | None) -> Tensor:
    """[heads, N, D]: every sequence in a row of its own, causal, so that torch's flash kernels apply; padding stands behind all tokens."""
    dtype = v.dtype if v.dtype in (torch.float32, torch.float64) else torch.bfloat16
    out = q.new_zeros(q.shape[0], q.shape[1], v.shape[-1], dtype=dtype)
    for index in sequences:
        query, key, value = (x.to(dtype)[:, index.read].unflatten(1, index.shape).transpose(0, 1) for x in (q, k, v))
        length = index.shape[1]
        mask = None
        if window is not None and window < length:
            mask = torch.ones(length, length, dtype=torch.bool, device=q.device).tril().triu(1 - window)
        gqa = len(q) != len(k)
        attended = F.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None, scale=scale, enable_gqa=gqa)
        out = out.index_copy(1, index.place, attended.transpose(0, 1).flatten(1, 2)[:, index.kept])
    return out
