"""How are sequences laid out in a forward pass? A prompt once, and behind it all completions that share it, in one flat row without padding.

A tree is one prompt and some completions: [prompt, completion 1, ..., completion G]. Each completion sees the prompt and itself; position ids
restart after the prompt for each of them, so every token has the context and the position that it has in a sequence of its own. A pass holds
one tree or several, and a large group may be several trees.

Matrix products see tokens only, so nothing is padded for them. Attention works on blocks: completions of like length whose prompts are of like
length, a few at a time, so that little is padded there and the scores fit a core's cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from grpo.trainer.batch import Batch

SCORES_PER_BLOCK = 2**16  # attention scores of a block, for each head


@dataclass(frozen=True)
class Block:
    """R prompts with up to G completions each, as places in the pass; -1 for padding, which stands at the end of a row.

    prefix  [R, Lp]     the prompts' tokens; Lp is 0 for segments that stand alone (a prompt itself, a sequence with a prompt of its own)
    own     [R, G, Lc]  the completions' tokens
    """

    prefix: np.ndarray
    own: np.ndarray


@dataclass(frozen=True)
class PackedPass:
    """N tokens for one forward pass, and where to read and write what belongs to completion tokens.

    tokens, positions    [N] int64
    blocks                       what attends to what; no prompt occurs twice in a block, and prompts' own blocks come first
    source               [M] int64   place in the pass of the token that predicts
    target               [M] int64   the token id predicted
    sample, column       [M] int64   its place in the Batch: arrays of [B, T] are read at [sample, column]
    """

    tokens: np.ndarray
    positions: np.ndarray
    blocks: tuple[Block, ...]
    source: np.ndarray
    target: np.ndarray
    sample: np.ndarray
    column: np.ndarray

    def sequences(self) -> list[np.ndarray]:
        """Every sequence whole, as places in the pass: arrays [B, T] padded with -1, sequences of like length together."""
        whole = []
        for block in self.blocks:
            for prefix, completions in zip(block.prefix, block.own, strict=True):
                whole += [np.concatenate([_real(prefix), _real(own)]) for own in completions if own[0] >= 0]
        by_length: dict[int, list[np.ndarray]] = {}
        for places in whole:
            by_length.setdefault(_length_class(len(places)), []).append(places)
        return [_padded(rows) for _, rows in sorted(by_length.items())]


def pack(batch: Batch, tokens_per_pass: int, rank: int = 0, ranks: int = 1) -> list[PackedPass]:
    """Lay out rank's share of ``batch`` in passes of at most ``tokens_per_pass`` tokens: longest trees first, each where it first fits.

    Trees go to the rank that has fewest tokens. All ranks get equally many passes, since what is sharded is gathered by all at once; where
    one has fewer, idle passes without targets are added.
    The layout follows from shapes alone, never from timings, so that a run repeats.
    Raises ValueError where a single sequence exceeds ``tokens_per_pass``.
    """
    longest = int(batch.lengths.max(initial=1))
    if longest > tokens_per_pass:
        raise ValueError(
            f"a sequence of {longest} tokens exceeds max_tokens_per_micro_batch = {tokens_per_pass}; raise it to at least that"
        )
    share = max(longest, math.ceil(int(batch.lengths.sum()) / ranks)) if ranks > 1 else tokens_per_pass
    shares: list[list[_Tree]] = [[] for _ in range(ranks)]
    for tree in sorted(_trees(batch, min(share, tokens_per_pass)), key=lambda tree: -tree.num_tokens):
        min(shares, key=lambda trees: sum(t.num_tokens for t in trees)).append(tree)
    plans = [_first_fit(trees, tokens_per_pass) for trees in shares]
    passes = [_lay_out(batch, trees) for trees in plans[rank]]
    return passes + [_idle_pass(batch)] * (max(map(len, plans)) - len(passes))


def _first_fit(trees: Sequence[_Tree], tokens_per_pass: int) -> list[list[_Tree]]:
    passes: list[list[_Tree]] = []
    room: list[int] = []
    for tree in trees:
        index = next((i for i, free in enumerate(room) if tree.num_tokens <= free), len(passes))
        if index == len(passes):
            passes.append([])
            room.append(tokens_per_pass)
        passes[index].append(tree)
        room[index] -= tree.num_tokens
    return passes


def _idle_pass(batch: Batch) -> PackedPass:
    """The shortest sequence, predicting nothing: it takes part in what all ranks do together and adds exactly 0."""
    shortest = int(batch.lengths.argmin())
    untold = batch.without_tokens_of(np.ones(len(batch), dtype=bool))
    return _lay_out(untold, [_Tree((shortest,), int(batch.lengths[shortest]))])


@dataclass(frozen=True)
class _Tree:
    samples: tuple[int, ...]
    num_tokens: int


def _trees(batch: Batch, max_tokens: int) -> list[_Tree]:
    """Groups as trees of at most ``max_tokens``; a group that is larger becomes several trees, each with the prompt."""
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
            if taken and size + own > max_tokens:
                trees.append(_Tree(tuple(taken), size))
                taken, size = [], prompt
            taken.append(b)
            size += own
        trees.append(_Tree(tuple(taken), size))
    return trees


def _lay_out(batch: Batch, trees: Sequence[_Tree]) -> PackedPass:
    num_tokens = sum(tree.num_tokens for tree in trees)
    tokens, positions = np.empty(num_tokens, dtype=np.int64), np.empty(num_tokens, dtype=np.int64)
    rows: list[_AttentionRow] = []
    source, target, sample, column = [], [], [], []
    at = 0
    for tree in trees:
        prompt = int(batch.prompt_lengths[tree.samples[0]])
        root = range(at, at + prompt)
        tokens[at : at + prompt] = batch.tokens[tree.samples[0], :prompt]
        positions[at : at + prompt] = np.arange(prompt)
        at += prompt
        completions = []
        for b in tree.samples:
            end = int(batch.lengths[b])
            here = range(at, at + end - prompt)
            tokens[here.start : here.stop] = batch.tokens[b, prompt:end]
            positions[here.start : here.stop] = np.arange(prompt, end)
            columns = np.flatnonzero(batch.loss_mask[b, prompt:end]) + prompt
            source.append(np.where(columns == prompt, root.stop - 1, here.start + columns - prompt - 1))
            target.append(batch.tokens[b, columns])
            sample.append(np.full(len(columns), b))
            column.append(columns)
            completions.append(here)
            at = here.stop
        rows += _attention_rows(root, completions)
    return PackedPass(tokens, positions, _blocks(rows), *(np.concatenate(parts) for parts in (source, target, sample, column)))


@dataclass(frozen=True)
class _AttentionRow:
    prefix: range
    completions: tuple[range, ...]
    piece: int = 0  # the how-manieth row of its prompt and length

    @property
    def longest(self) -> int:
        return max(len(own) for own in self.completions)


def _attention_rows(prompt: range, completions: Sequence[range]) -> list[_AttentionRow]:
    """The prompt, then its completions by length; a prompt with one completion is simply a sequence."""
    if len(completions) == 1:
        return [_AttentionRow(range(0), (range(prompt.start, completions[0].stop),))]
    rows = [_AttentionRow(range(0), (prompt,))]
    by_length: dict[int, list[range]] = {}
    for own in completions:
        if len(own):
            by_length.setdefault(_length_class(len(own)), []).append(own)
    for alike in by_length.values():
        longest = max(len(own) for own in alike)
        at_once = max(1, SCORES_PER_BLOCK // (longest * (longest + len(prompt))))
        pieces = [alike[i : i + at_once] for i in range(0, len(alike), at_once)]
        rows += [_AttentionRow(prompt, tuple(few), piece) for piece, few in enumerate(pieces)]
    return rows


def _blocks(rows: Sequence[_AttentionRow]) -> tuple[Block, ...]:
    """Rows of like shape together, never two of one prompt, at most SCORES_PER_BLOCK scores or a single row; rows without prefix first."""
    alike: dict[tuple[int, int, int], list[_AttentionRow]] = {}
    for row in rows:
        alike.setdefault((_length_class(len(row.prefix)), _length_class(row.longest), row.piece), []).append(row)
    blocks = []
    for _, candidates in sorted(alike.items()):
        taken: list[_AttentionRow] = []
        for row in sorted(candidates, key=lambda row: -len(row.completions)):
            if taken and _num_scores([*taken, row]) > SCORES_PER_BLOCK:
                blocks.append(_block(taken))
                taken = []
            taken.append(row)
        blocks.append(_block(taken))
    return tuple(blocks)


def _num_scores(rows: Sequence[_AttentionRow]) -> int:
    longest, prefix = max(row.longest for row in rows), max(len(row.prefix) for row in rows)
    return len(rows) * max(len(row.completions) for row in rows) * longest * (longest + prefix)


def _block(rows: Sequence[_AttentionRow]) -> Block:
    num_completions, longest = max(len(row.completions) for row in rows), max(row.longest for row in rows)
    own = np.full((len(rows), num_completions, longest), -1, dtype=np.int64)
    for r, row in enumerate(rows):
        for g, completion in enumerate(row.completions):
            own[r, g, : len(completion)] = completion
    return Block(_padded([np.array(row.prefix, dtype=np.int64) for row in rows]), own)


def _length_class(length: int) -> int:
    """Lengths of one class differ by less than a factor of the square root of two."""
    return math.ceil(2 * math.log2(length)) if length > 1 else length - 1


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    padded = np.full((len(rows), max(len(row) for row in rows)), -1, dtype=np.int64)
    for r, row in enumerate(rows):
        padded[r, : len(row)] = row
    return padded


def _real(places: np.ndarray) -> np.ndarray:
    return places[places >= 0]
