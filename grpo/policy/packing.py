"""How sequences are laid out in the rows of a forward pass: a prompt once, and behind it all completions that share it.

A tree is one prompt and some completions: [prompt, completion 1, ..., completion G]. Each completion sees the prompt and itself; position ids
restart after the prompt for each of them, so every token has the context and the position that it has in a row of its own. A row holds one
tree or several, and a large group may be several trees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from grpo.policy.batch import Batch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PackedRows:
    """R rows of T columns for one forward pass, and where to read and write what belongs to completion tokens.

    tokens, positions    [R, T] int64
    segment              [R, T] int64   which prompt or completion a token is of; -1 for padding
    parent               [R, T] int64   the segment of that completion's prompt (a prompt is its own parent)
    source               [N] int64      flat index (row * T + column) of the token that predicts
    target               [N] int64      the token id predicted
    sample, column       [N] int64      its place in the Batch: arrays of [B, T] are read at [sample, column]
    """

    tokens: np.ndarray
    positions: np.ndarray
    segment: np.ndarray
    parent: np.ndarray
    source: np.ndarray
    target: np.ndarray
    sample: np.ndarray
    column: np.ndarray


@dataclass(frozen=True)
class _Tree:
    samples: tuple[int, ...]
    num_tokens: int


@dataclass(frozen=True)
class Costs:
    """What a forward pass costs, in any unit: for each token (matrix products), and for each pair of tokens in a row (attention)."""

    per_token: float
    per_pair: float


def pack(batch: Batch, tokens_per_pass: int, costs: Costs) -> list[PackedRows]:
    """Lay out all sequences of ``batch`` in passes of at most ``tokens_per_pass`` tokens, padding included.

    A short row repeats a prompt for few completions, a long one pays for T x T attention; the row length is the cheapest of the powers of two
    by ``costs``. The layout follows from shapes alone, never from timings, so that a run repeats.
    Raises ValueError where a single sequence exceeds ``tokens_per_pass``.
    """
    longest = int(batch.lengths.max(initial=1))
    if longest > tokens_per_pass:
        raise ValueError(f"a sequence of {longest} tokens exceeds tokens_per_device = {tokens_per_pass}; raise it to at least that")
    candidates = [2**k for k in range(6, tokens_per_pass.bit_length()) if 2**k >= longest] or [tokens_per_pass]
    passes = min((_passes(batch, tokens_per_pass, row_tokens) for row_tokens in candidates), key=lambda passes: _cost(passes, costs))
    return [_lay_out(batch, rows, _width(rows)) for rows in passes]


def tree_mask(segment_RT: Tensor, parent_RT: Tensor) -> Tensor:
    """[R, 1, T, T] bool: True where a query may look at a key, which is itself, its own segment's past, and its prompt."""
    query, key = segment_RT[:, :, None], segment_RT[:, None, :]
    num_columns = segment_RT.shape[1]
    causal = segment_RT.new_ones((num_columns, num_columns)).tril().bool()
    related = (query == key) | (parent_RT[:, :, None] == key)
    return (related & causal & (query >= 0) | causal.triu()).unsqueeze(1)


_Row = list[_Tree]


def _passes(batch: Batch, tokens_per_pass: int, row_tokens: int) -> list[list[_Row]]:
    """Rows of up to ``row_tokens``, first fit, longest first; rows of like length together, so that little is padded."""
    rows = _fill_rows(_trees(batch, row_tokens), row_tokens)
    rows.sort(key=lambda row: -_size(row))
    passes = []
    while rows:
        num_rows = max(1, tokens_per_pass // _size(rows[0]))
        passes.append(rows[:num_rows])
        rows = rows[num_rows:]
    return passes


def _cost(passes: Sequence[Sequence[_Row]], costs: Costs) -> float:
    return sum(len(rows) * _width(rows) * (costs.per_token + costs.per_pair * _width(rows)) for rows in passes)


def _width(rows: Sequence[_Row]) -> int:
    return max(_size(row) for row in rows)


def _size(row: _Row) -> int:
    return sum(tree.num_tokens for tree in row)


def _trees(batch: Batch, row_tokens: int) -> list[_Tree]:
    """Groups as trees of at most ``row_tokens``; a group that is larger becomes several trees, each with the prompt."""
    members: dict[int, list[int]] = {}
    for b, group in enumerate(batch.group.tolist()):
        members.setdefault(group, []).append(b)
    trees: list[_Tree] = []
    for samples in members.values():
        prompt = int(batch.prompt_lengths[samples[0]])
        taken: list[int] = []
        size = prompt
        for b in samples:
            own = int(batch.lengths[b]) - prompt
            if taken and size + own > row_tokens:
                trees.append(_Tree(tuple(taken), size))
                taken, size = [], prompt
            taken.append(b)
            size += own
        trees.append(_Tree(tuple(taken), size))
    return trees


def _fill_rows(trees: Sequence[_Tree], row_tokens: int) -> list[_Row]:
    rows: list[_Row] = []
    room: list[int] = []
    for tree in sorted(trees, key=lambda tree: -tree.num_tokens):
        for index, free in enumerate(room):
            if tree.num_tokens <= free:
                rows[index].append(tree)
                room[index] -= tree.num_tokens
                break
        else:
            rows.append([tree])
            room.append(row_tokens - tree.num_tokens)
    return rows


def _lay_out(batch: Batch, rows: Sequence[_Row], width: int) -> PackedRows:
    shape = (len(rows), width)
    tokens, positions = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    segment, parent = np.full(shape, -1, dtype=np.int64), np.full(shape, -1, dtype=np.int64)
    source, target, sample, column = [], [], [], []
    for r, row in enumerate(rows):
        at, segments = 0, 0
        for tree in row:
            prompt = int(batch.prompt_lengths[tree.samples[0]])
            root, last_of_prompt = segments, at + prompt - 1
            here = slice(at, at + prompt)
            tokens[r, here] = batch.tokens[tree.samples[0], :prompt]
            positions[r, here] = np.arange(prompt)
            segment[r, here], parent[r, here] = root, root
            at, segments = at + prompt, segments + 1
            for b in tree.samples:
                end = int(batch.lengths[b])
                here = slice(at, at + end - prompt)
                tokens[r, here] = batch.tokens[b, prompt:end]
                positions[r, here] = np.arange(prompt, end)
                segment[r, here], parent[r, here] = segments, root
                columns = np.flatnonzero(batch.loss_mask[b, prompt:end]) + prompt
                predictor = np.where(columns == prompt, last_of_prompt, at + columns - prompt - 1)
                source.append(r * width + predictor)
                target.append(batch.tokens[b, columns])
                sample.append(np.full(len(columns), b))
                column.append(columns)
                at, segments = at + end - prompt, segments + 1
    return PackedRows(
        tokens, positions, segment, parent, np.concatenate(source), np.concatenate(target), np.concatenate(sample), np.concatenate(column)
    )
