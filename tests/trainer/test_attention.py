"""Attention over shared prompts is attention of each sequence alone: who sees whom, values, gradients, windows, on both paths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from grpo.errors import TrainingError
from grpo.trainer import attention
from grpo.trainer.attention import AttentionBlocks, tree_attention
from grpo.trainer.batch import make_batch
from grpo.trainer.packing import PackedPass, pack

# Prompt P Q with completions a b and c; prompt R with completion d: a sequence by itself.
NAMES = "PQabcRd"
SEEN = {"P": "P", "Q": "PQ", "a": "PQa", "b": "PQab", "c": "PQc", "R": "R", "d": "Rd"}


def small_pass() -> PackedPass:
    (packed,) = pack(make_batch([(1, 2), (1, 2), (7,)], [(3, 4), (5,), (8,)], group=[0, 0, 1]), 100)
    assert packed.tokens.tolist() == [1, 2, 3, 4, 5, 7, 8]
    return packed


def uneven_pass() -> PackedPass:
    """Prompts of 5, 4 and 9 tokens; completions of 1 to 12, three of the first prompt's in one block with padding."""
    groups = {0: (5, [12, 11, 10, 3]), 1: (4, [12, 9]), 2: (9, [1, 6])}
    flat = [(group, prompt, length) for group, (prompt, lengths) in groups.items() for length in lengths]
    batch = make_batch([range(p) for _, p, _ in flat], [range(n) for *_, n in flat], group=[g for g, *_ in flat])
    (packed,) = pack(batch, 200)
    return packed


def layouts(packed: PackedPass) -> dict[str, AttentionBlocks]:
    cpu = torch.device("cpu")
    by_sequences = AttentionBlocks((), tuple(attention._SequenceIndex.of(rows, cpu) for rows in packed.sequences()))
    return {"blocks": AttentionBlocks.of(packed, cpu), "sequences": by_sequences}


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: AttentionBlocks, **more: Any) -> torch.Tensor:
    return tree_attention(torch.nn.Identity(), q[None], k[None], v[None], None, layout=layout, **more)[0][0].transpose(0, 1)


def expected_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, packed: PackedPass, window: int | None) -> torch.Tensor:
    """Every sequence by itself, with loops."""
    out = torch.empty(len(q), q.shape[1], v.shape[-1], dtype=q.dtype)
    for rows in packed.sequences():
        for places in rows:
            places = places[places >= 0]
            for t, place in enumerate(places):
                visible = places[max(0, t - window + 1) if window else 0 : t + 1]
                for head in range(len(q)):
                    shared = head * len(k) // len(q)
                    weights = torch.softmax(k[shared, visible] @ q[head, place] * q.shape[-1] ** -0.5, dim=0)
                    out[head, place] = weights @ v[shared, visible]
    return out


def random_qkv(num_tokens: int, heads: int = 4, shared: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    make = lambda num, size: torch.randn(num, num_tokens, size, generator=generator, dtype=torch.float64).requires_grad_()  # noqa: E731
    return make(heads, 6), make(shared, 6), make(shared, 5)


@pytest.mark.parametrize("path", ["blocks", "sequences"])
def test_a_token_sees_its_prompt_and_its_own_past_and_nothing_else(path: str) -> None:
    packed = small_pass()
    q, k, v = random_qkv(len(packed.tokens))
    out = attend(q, k, v, layouts(packed)[path])
    seen = {}
    for place, name in enumerate(NAMES):
        (grad,) = torch.autograd.grad(out[:, place].sum(), v, retain_graph=True)
        seen[name] = "".join(NAMES[other] for other in range(len(NAMES)) if grad[:, other].abs().sum() > 0)
    assert seen == SEEN


@pytest.mark.parametrize("path", ["blocks", "sequences"])
@pytest.mark.parametrize("window", [None, 1, 4, 8])
def test_values_and_gradients_are_those_of_each_sequence_alone(path: str, window: int | None) -> None:
    packed = uneven_pass()
    qkv = random_qkv(len(packed.tokens))
    upstream = torch.randn(4, len(packed.tokens), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = expected_attention(*qkv, packed, window)
    found = attend(*qkv, layouts(packed)[path], sliding_window=window)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    wanted = torch.autograd.grad((expected * upstream).sum(), qkv)
    for found_grad, wanted_grad in zip(torch.autograd.grad((found * upstream).sum(), qkv), wanted, strict=True):
        torch.testing.assert_close(found_grad, wanted_grad, rtol=1e-10, atol=1e-12)


def test_a_block_with_too_many_scores_goes_head_by_head(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = uneven_pass()
    qkv = random_qkv(len(packed.tokens))

    def run() -> list[torch.Tensor]:
        out = attend(*qkv, AttentionBlocks.of(packed, torch.device("cpu")))
        return [out, *torch.autograd.grad(out.square().sum(), qkv)]

    together = run()
    monkeypatch.setattr(attention, "MAX_SCORES", 100)
    for apart, at_once in zip(run(), together, strict=True):
        torch.testing.assert_close(apart, at_once, rtol=1e-12, atol=1e-14)


def test_the_way_back_repeats_bit_for_bit() -> None:
    packed = uneven_pass()
    layout = AttentionBlocks.of(packed, torch.device("cpu"))
    qkv = [x.detach().float().requires_grad_() for x in random_qkv(len(packed.tokens))]
    first, second = (torch.autograd.grad(attend(*qkv, layout).square().sum(), qkv) for _ in range(2))
    assert all(np.array_equal(a.numpy(), b.numpy()) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("what", ["softcap", "s_aux"])
def test_what_it_does_not_compute_it_refuses(what: str) -> None:
    packed = small_pass()
    with pytest.raises(TrainingError, match=f"this model's attention has {what} = 30.0, which the trainer does not compute"):
        attend(*random_qkv(len(packed.tokens)), AttentionBlocks.of(packed, torch.device("cpu")), **{what: 30.0})
