"""Which variants are there? A variant is a row: the same objective with other parts.

loss = sum_it  weights_it * ( surrogate(logprob_it, old_logprob_it, A_i) + kl_coef * kl(logprob_it, ref_logprob_it) )
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from grpo.algorithm.advantages import group_centre, group_zscore
from grpo.algorithm.kl import k3
from grpo.algorithm.losses import Aggregate, clipped_surrogate

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Algorithm:
    """The parts of the objective.

    advantage   (rewards [P, G], has_reward [P, G]) -> advantages [P, G]
    surrogate   (logprobs, old_logprobs, advantages, clip_low, clip_high) -> loss of each token
    kl          (logprobs, ref_logprobs) -> estimate for each token; added to the loss, not to the reward
    """

    name: str
    paper: str
    advantage: Callable[[Tensor, Tensor], Tensor]
    surrogate: Callable[[Tensor, Tensor, Tensor, float, float], Tensor] = clipped_surrogate
    clip_low: float = 0.2
    clip_high: float = 0.2
    aggregate: Aggregate = "sequence_mean"
    kl: Callable[[Tensor, Tensor], Tensor] = k3
    kl_coef: float = 0.001


GRPO = Algorithm(name="grpo", paper="arXiv:2402.03300, eq. 3 and 4; kl_coef of R1 (arXiv:2501.12948)", advantage=group_zscore)

TABLE: dict[str, Algorithm] = {
    row.name: row
    for row in (
        GRPO,
        replace(GRPO, name="dr_grpo", paper="arXiv:2503.20783", advantage=group_centre, aggregate="constant", kl_coef=0.0),
        replace(GRPO, name="dapo", paper="arXiv:2503.14476", clip_high=0.28, aggregate="token_mean", kl_coef=0.0),
    )
}


def load_algorithm(ref: str, base: Path) -> Algorithm:
    """The row that ``ref`` names, or the one a user keeps in a file of their own: ./file.py:NAME, relative to ``base``.

    Raises ValueError with what was found and what to write instead.
    """
    if ref in TABLE:
        return TABLE[ref]
    file, colon, name = ref.rpartition(":")
    if not colon or not file.endswith(".py"):
        close = get_close_matches(ref, TABLE, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "; or write ./file.py:NAME"
        raise ValueError(f"algorithm {ref!r} is not known; known are {', '.join(TABLE)}{hint}")
    path = (base / file).resolve()
    if not path.is_file():
        raise ValueError(f"algorithm {ref!r}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"_user_algorithm_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    row = getattr(module, name, None)
    if not isinstance(row, Algorithm):
        found = f"a {type(row).__name__}" if row is not None else "nothing of that name"
        raise ValueError(
            f"algorithm {ref!r}: expected an Algorithm called {name!r} in {path}, found {found}; write {name} = replace(GRPO, ...)"
        )
    return row
