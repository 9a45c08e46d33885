"""Packed rows hold every completion token once, within the budget, and each has the log-probability that it has in a row of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo.trainer import head, packing
from grpo.trainer.attention import ordinary_attention
from grpo.trainer.batch import Batch, make_batch
from grpo.trainer.logprobs import completion_logprobs
from grpo.trainer.packing import pack

# Prompts of 3, 1 and 5 tokens, with 3, 2 and 1 completions; one group is not in one piece. As trees: 58, 31 and 30 tokens.
PROMPTS = {0: (11, 12, 13), 1: (60,), 2: (21, 22, 23, 24, 25)}
COMPLETIONS = [(0, range(30, 50)), (1, range(50, 62)), (0, range(62, 67)), (0, range(70, 100)), (2, range(100, 125)), (1, range(130, 148))]


def batch_of(completions: Sequence[tuple[int, Sequence[int]]] = COMPLETIONS, **more: Any) -> Batch:
    groups = [group for group, _ in completions]
    return make_batch([PROMPTS[group] for group in groups], [tokens for _, tokens in completions], group=groups, **more)


def packed_logprobs(model: Any, batch: Batch, tokens_per_pass: int = 1000, temperature: float = 1.0) -> np.ndarray:
    found = np.full(batch.tokens.shape, np.nan)
    with torch.no_grad():
        for rows in pack(batch, tokens_per_pass):
            found[rows.sample, rows.column] = completion_logprobs(model, rows, temperature)[0].numpy()
    return found


def plain(model: Any, plain_logprobs: Callable[..., torch.Tensor], batch: Batch, temperature: float = 1.0) -> np.ndarray:
    expected = np.full(batch.tokens.shape, np.nan)
    with torch.no_grad():
        for b, (group, tokens) in enumerate(COMPLETIONS):
            start = len(PROMPTS[group])
            expected[b, start : start + len(tokens)] = plain_logprobs(model, PROMPTS[group], tokens, temperature).numpy()
    return expected


@pytest.mark.parametrize(
    ("tokens_per_pass", "sizes"),
    [
        (1000, [119]),  # everything at once
        (64, [61, 58]),  # 31 + 30 and 58
        (60, [58, 31, 30]),  # a tree a pass
        (40, [33, 31, 30, 28]),  # the first group's prompt twice: 3 + 20 + 5 and 3 + 30
    ],
)
def test_packed_passes_give_the_log_probs_that_each_sequence_has_alone(
    model: Any, plain_logprobs: Callable[..., torch.Tensor], tokens_per_pass: int, sizes: list[int]
) -> None:
    batch = batch_of()
    expected = plain(model, plain_logprobs, batch)
    np.testing.assert_allclose(packed_logprobs(model, batch, tokens_per_pass), expected, rtol=1e-10, atol=1e-10)
    assert sorted((len(packed.tokens) for packed in pack(batch, tokens_per_pass)), reverse=True) == sizes
    assert np.nanstd(expected) > 1, "the model is too flat for a wrong layout to show"


def test_temperature_divides_the_logits(model: Any, plain_logprobs: Callable[..., torch.Tensor]) -> None:
    batch = batch_of()
    at_0_7, at_1 = (packed_logprobs(model, batch, temperature=temperature) for temperature in (0.7, 1.0))
    np.testing.assert_allclose(at_0_7, plain(model, plain_logprobs, batch, 0.7), rtol=1e-5, atol=1e-5)
    assert np.nanmean(np.abs(at_0_7 - at_1)) > 0.1


def test_the_first_completion_token_is_predicted_by_the_prompts_last(model: Any) -> None:
    with torch.no_grad(), ordinary_attention(model):
        after_prompt = model(torch.tensor([PROMPTS[0]])).logits[0, -1].log_softmax(-1)
    found = packed_logprobs(model, batch_of())
    for b, (group, tokens) in enumerate(COMPLETIONS):
        if group == 0:
            assert found[b, 3] == pytest.approx(after_prompt[tokens[0]].item(), rel=1e-5)


def test_a_completion_does_not_see_its_siblings(model: Any) -> None:
    changed = list(COMPLETIONS)
    changed[0] = (0, range(200, 220))  # the first of three siblings, which stand behind it in the same row
    before, after = packed_logprobs(model, batch_of()), packed_logprobs(model, batch_of(changed))
    np.testing.assert_array_equal(after[1:], before[1:])
    assert (after[0] != before[0])[3:23].all()


def test_a_completion_does_not_depend_on_how_many_siblings_it_has(model: Any) -> None:
    alone = packed_logprobs(model, batch_of([COMPLETIONS[3]]))
    np.testing.assert_allclose(alone[0], packed_logprobs(model, batch_of())[3, :33], rtol=1e-5)


def test_a_tools_tokens_are_context_but_not_targets(model: Any) -> None:
    trainable = [[True] * len(tokens) for _, tokens in COMPLETIONS]
    trainable[3][1:3] = [False, False]
    everything, without = packed_logprobs(model, batch_of()), packed_logprobs(model, batch_of(trainable=trainable))
    assert np.isnan(without[3, 4:6]).all()
    everything[3, 4:6] = np.nan
    np.testing.assert_allclose(without, everything, rtol=1e-12)


def test_logits_in_chunks_give_the_same_log_probs_entropies_and_gradients(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (rows,) = pack(batch_of(), 1000)

    def run() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logprobs, entropy = completion_logprobs(model, rows, 0.7)
        model.zero_grad()
        (logprobs * torch.arange(len(logprobs))).sum().backward()
        return logprobs.detach(), entropy, model.get_output_embeddings().weight.grad.clone()

    whole = run()
    monkeypatch.setattr(head, "LOGITS_PER_PRODUCT", 4 * model.config.vocab_size)  # 110 tokens by fours
    for in_chunks, at_once in zip(run(), whole, strict=True):
        torch.testing.assert_close(in_chunks, at_once, rtol=1e-5, atol=1e-5)


def test_entropy_is_that_of_the_distribution_at_the_sampling_temperature(model: Any) -> None:
    (rows,) = pack(batch_of([COMPLETIONS[0]]), 1000)
    with torch.no_grad():
        _, entropy = completion_logprobs(model, rows, 0.7)
    with torch.no_grad(), ordinary_attention(model):
        probabilities = (model(torch.tensor([[*PROMPTS[0], *COMPLETIONS[0][1]]])).logits[0, 2:22] / 0.7).softmax(-1)
    torch.testing.assert_close(entropy.double(), -(probabilities * probabilities.log()).sum(-1), rtol=1e-5, atol=1e-5)


shapes = st.lists(st.tuples(st.integers(1, 6), st.lists(st.integers(1, 9), min_size=1, max_size=5)), min_size=1, max_size=5)


@given(shapes=shapes, tokens_per_pass=st.integers(15, 300))
def test_every_completion_token_is_laid_out_once_and_no_pass_exceeds_its_budget(
    shapes: list[tuple[int, list[int]]], tokens_per_pass: int
) -> None:
    prompts, completions, group = [], [], []
    for number, (prompt, lengths) in enumerate(shapes):
        for length in lengths:
            prompts.append([100 * number + token for token in range(prompt)])
            completions.append([1000 * (len(completions) + 1) + token for token in range(length)])
            group.append(number)
    batch = make_batch(prompts, completions, group=group)
    places = []
    for rows in pack(batch, tokens_per_pass):
        assert rows.tokens.size <= tokens_per_pass
        places += list(zip(rows.sample.tolist(), rows.column.tolist(), strict=True))
        np.testing.assert_array_equal(rows.target, batch.tokens[rows.sample, rows.column])
        before = batch.tokens[rows.sample, rows.column - 1]
        np.testing.assert_array_equal(rows.tokens[rows.source], before)  # the token that predicts is the one before
        np.testing.assert_array_equal(rows.positions[rows.source], rows.column - 1)
    assert sorted(places) == [tuple(place) for place in np.argwhere(batch.loss_mask).tolist()]


def test_a_prompt_is_laid_out_once_for_all_its_completions() -> None:
    batch = make_batch([(11, 12, 13)] * 3, [(31, 32), (35,), (36, 37, 38)], group=[0, 0, 0])
    (rows,) = pack(batch, 1000)
    assert rows.tokens.tolist() == [11, 12, 13, 31, 32, 35, 36, 37, 38]
    assert rows.positions.tolist() == [0, 1, 2, 3, 4, 3, 3, 4, 5]
    assert rows.source.tolist() == [2, 3, 2, 2, 6, 7] and rows.target.tolist() == [31, 32, 35, 36, 37, 38]


@given(shapes=shapes, tokens_per_pass=st.integers(15, 300), scores_per_block=st.sampled_from([1, 60, 2**16]))
def test_every_token_attends_once_and_from_the_place_of_its_own_sequence(
    shapes: list[tuple[int, list[int]]], tokens_per_pass: int, scores_per_block: int
) -> None:
    lengths = [(number, prompt, length) for number, (prompt, own) in enumerate(shapes) for length in own]
    batch = make_batch([range(prompt) for _, prompt, _ in lengths], [range(n) for *_, n in lengths], group=[i for i, *_ in lengths])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "SCORES_PER_BLOCK", scores_per_block)
        for packed in pack(batch, tokens_per_pass):
            written = np.concatenate([block.own.ravel() for block in packed.blocks])
            assert sorted(written[written >= 0].tolist()) == list(range(len(packed.tokens)))
            for block in packed.blocks:
                heads = [tuple(prefix) for prefix in block.prefix.tolist() if prefix]
                assert len(heads) == len(set(heads)), "a prompt twice in a block would lose a gradient"
            for rows in packed.sequences():
                for places in rows:
                    places = places[places >= 0]
                    np.testing.assert_array_equal(packed.positions[places], np.arange(len(places)))


def test_a_sequence_over_the_budget_is_refused_with_what_to_raise() -> None:
    # the longest has a prompt of 3 and a completion of 30
    with pytest.raises(ValueError, match="a sequence of 33 tokens exceeds max_tokens_per_micro_batch = 32; raise it to at least that"):
        pack(batch_of(), 32)


def test_the_layout_follows_from_the_shapes_alone() -> None:
    other_tokens = [(group, [token + 100 for token in tokens]) for group, tokens in COMPLETIONS]
    for one, other in zip(pack(batch_of(), 64), pack(batch_of(other_tokens), 64), strict=True):
        np.testing.assert_array_equal(one.source, other.source)
        for block, same in zip(one.blocks, other.blocks, strict=True):
            np.testing.assert_array_equal(block.own, same.own)
