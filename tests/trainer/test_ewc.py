"""The spring of elastic weight consolidation, by hand on a quadratic, and on the trainer's own gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from grpo.trainer.batch import make_batch
from grpo.trainer.ewc import Anchor
from grpo.trainer.policy_trainer import PolicyTrainer


def rows_of(theta: torch.nn.Parameter, gradients: list[list[float]]) -> Iterator[None]:
    for gradient in gradients:
        theta.grad = torch.tensor(gradient)
        yield


def test_pull_and_penalty_are_those_of_equation_3() -> None:
    """Row gradients (1, 2) and (3, 0): F = ((1 + 9) / 2, (4 + 0) / 2) = (5, 2). From theta* = (1, 1) to theta = (2, -1), with lambda 10:

    penalty   10 / 2 * (5 * 1^2 + 2 * (-2)^2) = 65
    slope     10 * (5 * 1, 2 * -2) = (50, -40), added to the gradient that is there
    """
    theta = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    anchor = Anchor.of_gradients([theta], 10.0, rows_of(theta, [[1.0, 2.0], [3.0, 0.0]]))
    assert anchor.fisher[0].tolist() == [5.0, 2.0]
    theta.data, theta.grad = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 0.5])
    assert anchor.pull([theta]) == 65.0
    assert theta.grad.tolist() == [50.5, -39.5]


def test_a_quadratic_task_settles_between_both_optima() -> None:
    """Task B is (theta - 3)^2 / 2, the anchor is at 0 with F = 4 and lambda = 0.5: the sum is least at 3 / (1 + 0.5 * 4) = 1."""
    theta = torch.nn.Parameter(torch.tensor([0.0]))
    anchor = Anchor.of_gradients([theta], 0.5, rows_of(theta, [[2.0]]))
    for _ in range(200):
        theta.grad = (theta.detach() - 3.0).clone()
        anchor.pull([theta])
        theta.data -= 0.1 * theta.grad
    assert theta.item() == pytest.approx(1.0)


def test_the_trainer_s_fisher_is_the_mean_square_of_each_row_s_gradient(
    make_trainer: Callable[..., PolicyTrainer], plain_logprobs: Callable[..., Any]
) -> None:
    trainer = make_trainer(None)
    rows = [((5, 6, 7), (8, 9)), ((10, 11), (12, 13, 14))]
    trainer.hold_weights(make_batch([prompt for prompt, _ in rows], [completion for _, completion in rows]), 1.0)
    expected = [torch.zeros_like(parameter) for parameter in trainer.model.parameters()]
    for prompt, completion in rows:
        gradients = torch.autograd.grad(plain_logprobs(trainer.model, prompt, completion).sum(), list(trainer.model.parameters()))
        for squares, gradient in zip(expected, gradients, strict=True):
            squares += gradient.square() / 2
    assert trainer.anchor is not None
    for found, wanted in zip(trainer.anchor.fisher, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-12)
    assert any(squares.any() for squares in expected)
