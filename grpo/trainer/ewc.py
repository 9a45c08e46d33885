"""How are weights held that an earlier task needs? Elastic weight consolidation: a spring on each of them, as stiff as the task is sensitive to it.

Kirkpatrick et al. 2017 (arXiv:1612.00796), equation 3:

    L(theta) = L_B(theta) + sum_i (lambda / 2) F_i (theta_i - theta*_A,i)^2

F is the diagonal of the Fisher information at theta*, the mean over the earlier task's rows of (d log p(row) / d theta_i)^2. We take the
completions that the rows have, not ones drawn from the model: the empirical Fisher, which costs a pass a row and no sampling.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Anchor:
    """theta*, lambda and F, a tensor for each parameter in the order in which they are given."""

    start: Sequence[Tensor]
    coef: float
    fisher: Sequence[Tensor]

    @classmethod
    def of_gradients(cls, parameters: Sequence[torch.nn.Parameter], coef: float, rows: Iterable[object]) -> Anchor:
        """The anchor at the present weights. Each turn of ``rows`` leaves the gradient of one row's log-probability in ``parameters``."""
        fisher = [torch.zeros_like(parameter) for parameter in parameters]
        num_rows = 0
        for _ in rows:
            num_rows += 1
            for squares, parameter in zip(fisher, parameters, strict=True):
                if parameter.grad is not None:
                    squares.addcmul_(parameter.grad, parameter.grad)
        for squares in fisher:
            squares /= max(1, num_rows)
        return cls([parameter.detach().clone() for parameter in parameters], coef, fisher)

    def moved(self, to: torch.device) -> Anchor:
        return Anchor([tensor.to(to) for tensor in self.start], self.coef, [tensor.to(to) for tensor in self.fisher])

    @torch.no_grad()
    def pull(self, parameters: Sequence[torch.nn.Parameter]) -> float:
        """Add lambda F (theta - theta*) to each gradient. Returns the penalty, sum_i (lambda / 2) F_i (theta_i - theta*_i)^2."""
        penalty = 0.0
        for parameter, start, fisher in zip(parameters, self.start, self.fisher, strict=True):
            away = parameter - start
            slope = self.coef * fisher * away
            parameter.grad = slope if parameter.grad is None else parameter.grad.add_(slope)
            penalty += 0.5 * (slope * away).sum().item()
        return penalty
