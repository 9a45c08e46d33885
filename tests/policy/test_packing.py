"""Packed rows hold every completion token once, within the budget, and each has the log-probability that it has in a row of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo.policy import logprobs as logprobs_module
from grpo.policy.batch import Batch, make_batch
from grpo.policy.logprobs import completion_logprobs
from grpo.policy.packing import Costs, pack, tree_mask

# Prompts of 3, 1 and 5 tokens, with 3, 2 and 1 completions; one group is not in one piece. As trees: 58, 31 and 30 tokens.
PROMPTS = {0: (11, 12, 13), 1: (60,), 2: (21, 22, 23, 24, 25)}
COMPLETIONS = [(0, range(30, 50)), (1, range(50, 62)), (0, range(62, 67)), (0, range(70, 100)), (2, range(100, 125)), (1, range(130, 148))]
TOKENS, PAIRS = Costs(per_token=1, per_pair=0), Costs(per_token=0, per_pair=1)


def batch_of(completions: Sequence[tuple[int, Sequence[int]]] = COMPLETIONS, **more: Any) -> Batch:
    groups = [group for group, _ in completions]
    return make_batch([PROMPTS[group] for group in groups], [tokens for _, tokens in completions], group=groups, **more)


def packed_logprobs(model: Any, batch: Batch, tokens_per_pass: int = 1000, costs: Costs = TOKENS, temperature: float = 1.0) -> np.ndarray:
    found = np.full(batch.tokens.shape, np.nan)
    with torch.no_grad():
        for rows in pack(batch, tokens_per_pass, costs):
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
    ("tokens_per_pass", "costs", "shapes"),
    [
        (1000, TOKENS, [(1, 119)]),  # everything in one row
        (1000, PAIRS, [(2, 61)]),  # 58 and 3 of padding above 31 + 30
        (64, TOKENS, [(1, 61), (1, 58)]),  # a row a pass
        (60, TOKENS, [(1, 58), (1, 31), (1, 30)]),  # a tree a row
        (40, TOKENS, [(1, 33), (1, 31), (1, 30), (1, 28)]),  # the first group's prompt twice: 3 + 20 + 5 and 3 + 30
    ],
)
def test_packed_rows_give_the_log_probs_of_a_row_for_each_sequence(
    model: Any, plain_logprobs: Callable[..., torch.Tensor], tokens_per_pass: int, costs: Costs, shapes: list[tuple[int, int]]
) -> None:
    batch = batch_of()
    expected = plain(model, plain_logprobs, batch)
    np.testing.assert_allclose(packed_logprobs(model, batch, tokens_per_pass, costs), expected, rtol=1e-5, atol=1e-5)
    assert [rows.tokens.shape for rows in pack(batch, tokens_per_pass, costs)] == shapes
    assert np.nanstd(expected) > 1, "the model is too flat for a wrong layout to show"


def test_temperature_divides_the_logits(model: Any, plain_logprobs: Callable[..., torch.Tensor]) -> None:
    batch = batch_of()
    at_0_7, at_1 = (packed_logprobs(model, batch, temperature=temperature) for temperature in (0.7, 1.0))
    np.testing.assert_allclose(at_0_7, plain(model, plain_logprobs, batch, 0.7), rtol=1e-5, atol=1e-5)
    assert np.nanmean(np.abs(at_0_7 - at_1)) > 0.1


def test_the_first_completion_token_is_predicted_by_the_prompts_last(model: Any) -> None:
    with torch.no_grad():
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
    np.testing.assert_array_equal(without, everything)


def test_logits_in_chunks_give_the_same_log_probs_entropies_and_gradients(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (rows,) = pack(batch_of(), 1000, TOKENS)

    def run() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logprobs, entropy = completion_logprobs(model, rows, 0.7, with_entropy=True)
        model.zero_grad()
        (logprobs * torch.arange(len(logprobs))).sum().backward()
        return logprobs.detach(), entropy, model.get_output_embeddings().weight.grad.clone()

    whole = run()
    monkeypatch.setattr(logprobs_module, "LOGITS_PER_CHUNK", 4 * model.config.vocab_size)  # 110 tokens by fours
    for in_chunks, at_once in zip(run(), whole, strict=True):
        torch.testing.assert_close(in_chunks, at_once, rtol=1e-5, atol=1e-5)


def test_entropy_is_that_of_the_distribution_at_the_sampling_temperature(model: Any) -> None:
    (rows,) = pack(batch_of([COMPLETIONS[0]]), 1000, TOKENS)
    with torch.no_grad():
        _, entropy = completion_logprobs(model, rows, 0.7, with_entropy=True)
        probabilities = (model(torch.tensor([[*PROMPTS[0], *COMPLETIONS[0][1]]])).logits[0, 2:22] / 0.7).softmax(-1)
    torch.testing.assert_close(entropy.double(), -(probabilities * probabilities.log()).sum(-1), rtol=1e-5, atol=1e-5)


def test_a_token_sees_its_own_past_and_its_prompt_and_nothing_else() -> None:
    # One row: prompt P Q, completions a b and c, then another tree: prompt R, completion d; one padding token.
    segment = torch.tensor([[0, 0, 1, 1, 2, 3, 4, -1]])
    parent = torch.tensor([[0, 0, 0, 0, 0, 3, 3, -1]])
    seen = {
        "P": "P",
        "Q": "PQ",
        "a": "PQa",
        "b": "PQab",
        "c": "PQc",
        "R": "R",
        "d": "Rd",
        ".": ".",  # itself only, because attention to nothing at all is not a number
    }
    names = "PQabcRd."
    mask = tree_mask(segment, parent)[0, 0]
    assert {names[q]: "".join(names[k] for k in range(8) if mask[q, k]) for q in range(8)} == seen


shapes = st.lists(st.tuples(st.integers(1, 6), st.lists(st.integers(1, 9), min_size=1, max_size=5)), min_size=1, max_size=5)


@given(shapes=shapes, tokens_per_pass=st.integers(15, 300), per_pair=st.sampled_from([0.0, 0.01, 1.0]))
def test_every_completion_token_is_laid_out_once_and_no_pass_exceeds_its_budget(
    shapes: list[tuple[int, list[int]]], tokens_per_pass: int, per_pair: float
) -> None:
    prompts, completions, group = [], [], []
    for number, (prompt, lengths) in enumerate(shapes):
        for length in lengths:
            prompts.append([100 * number + token for token in range(prompt)])
            completions.append([1000 * (len(completions) + 1) + token for token in range(length)])
            group.append(number)
    batch = make_batch(prompts, completions, group=group)
    places = []
    for rows in pack(batch, tokens_per_pass, Costs(1.0, per_pair)):
        assert rows.tokens.size <= tokens_per_pass
        places += list(zip(rows.sample.tolist(), rows.column.tolist(), strict=True))
        np.testing.assert_array_equal(rows.target, batch.tokens[rows.sample, rows.column])
        before = batch.tokens[rows.sample, rows.column - 1]
        np.testing.assert_array_equal(rows.tokens.reshape(-1)[rows.source], before)  # the token that predicts is the one before
        np.testing.assert_array_equal(rows.positions.reshape(-1)[rows.source], rows.column - 1)
    assert sorted(places) == [tuple(place) for place in np.argwhere(batch.loss_mask).tolist()]


def test_a_prompt_is_laid_out_once_for_all_its_completions() -> None:
    batch = make_batch([(11, 12, 13)] * 3, [(31, 32), (35,), (36, 37, 38)], group=[0, 0, 0])
    (rows,) = pack(batch, 1000, TOKENS)
    assert rows.tokens.tolist() == [[11, 12, 13, 31, 32, 35, 36, 37, 38]]
    assert rows.positions.tolist() == [[0, 1, 2, 3, 4, 3, 3, 4, 5]]
    assert rows.source.tolist() == [2, 3, 2, 2, 6, 7] and rows.target.tolist() == [31, 32, 35, 36, 37, 38]


@pytest.mark.parametrize(
    ("costs", "width"),
    [
        # A prompt of 10 with two completions of 50: one row of 110 tokens, or two of 60 that repeat the prompt.
        (Costs(per_token=1, per_pair=0), 110),  # 110 < 120
        (Costs(per_token=0, per_pair=1), 60),  # 110^2 = 12,100 > 2 * 60^2 = 7,200
        (Costs(per_token=1, per_pair=0.002), 110),  # 110 + 24.2 = 134.2 < 120 + 14.4 = 134.4
        (Costs(per_token=1, per_pair=0.003), 60),  # 110 + 36.3 = 146.3 > 120 + 21.6 = 141.6
    ],
)
def test_the_row_length_is_the_cheapest(costs: Costs, width: int) -> None:
    batch = make_batch([range(10)] * 2, [range(50)] * 2, group=[0, 0])
    assert {rows.tokens.shape[1] for rows in pack(batch, 600, costs)} == {width}


def test_a_sequence_over_the_budget_is_refused_with_what_to_raise() -> None:
    # the longest has a prompt of 3 and a completion of 30
    with pytest.raises(ValueError, match="a sequence of 33 tokens exceeds tokens_per_device = 32; raise it to at least that"):
        pack(batch_of(), 32, TOKENS)


def test_the_layout_follows_from_the_shapes_alone() -> None:
    other_tokens = [(group, [token + 100 for token in tokens]) for group, tokens in COMPLETIONS]
    for one, other in zip(pack(batch_of(), 64, TOKENS), pack(batch_of(other_tokens), 64, TOKENS), strict=True):
        np.testing.assert_array_equal(one.source, other.source)
        np.testing.assert_array_equal(one.segment, other.segment)
