"""Which variants are there? A variant is a row: the same objective with other parts.

loss = sum_it  weights_it * ( min(importance_it, cap) * surrogate(log r_it, A_i) + kl_coef * kl(logprob_it, ref_logprob_it) )
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from grpo.algorithm.advantages import group_centre, group_zscore, leave_one_out
from grpo.algorithm.kl import k1, k2, k3
from grpo.algorithm.losses import Aggregate, clipped_surrogate, clipped_weight_surrogate, dual_clipped_surrogate
from grpo.algorithm.ratios import Level

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Algorithm:
    """The parts of the objective.

    advantage          (rewards [P, G], has_reward [P, G]) -> advantages [P, G]
    per_reward         advantages of each reward by itself, summed with the rewards' weights
    batch_normalise    advantages divided by their deviation over the batch
    ratio              of tokens, or of whole samples
    surrogate          (log_ratio, advantages, clip_low, clip_high) -> loss of each token
    importance         weight with min(pi_old / pi_engine, importance_cap), of tokens or of whole samples; None for no correction
    kl                 (logprobs, ref_logprobs) -> estimate for each token
    kl_unbiased        that estimate times pi / pi_old, with its gradient: the divergence's own gradient also off policy
    kl_in              the loss, or the reward: then the sum of log pi_old - log pi_ref over a sample is taken from its reward (k1)
    mask_truncated     completions that reached max_completion_tokens teach nothing, but count in their group's mean
    mask_equal_groups  groups without advantage do not count in the mean over samples or tokens either
    published          what the paper's run set besides: keys of an rl stage, used where a recipe says nothing
    """

    name: str
    paper: str
    advantage: Callable[[Tensor, Tensor], Tensor]
    per_reward: bool = False
    batch_normalise: bool = False
    ratio: Level = "token"
    surrogate: Callable[[Tensor, Tensor, float, float], Tensor] = clipped_surrogate
    clip_low: float = 0.2
    clip_high: float = 0.2
    importance: Level | None = "token"
    importance_cap: float = 2.0
    aggregate: Aggregate = "sequence_mean"
    kl: Callable[[Tensor, Tensor], Tensor] = k3
    kl_coef: float = 0.001
    kl_in: Literal["loss", "reward"] = "loss"
    kl_unbiased: bool = False
    mask_truncated: bool = False
    mask_equal_groups: bool = False
    published: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0

    @property
    def has_kl_in_loss(self) -> bool:
        return self.kl_coef > 0 and self.kl_in == "loss"


GRPO = Algorithm(name="grpo", paper="arXiv:2402.03300, eq. 3 and 4; kl_coef of R1 (arXiv:2501.12948)", advantage=group_zscore)

# R1-Zero, section 2.1 (in the revision that Nature printed): learning rate 3e-6, KL 0.001, 16 outputs, temperature 1, the reference replaced every
# 400 steps, of which a rollout of 8,192 outputs makes 16, of 512: 32 questions with 16 outputs each. 10,400 steps; 65,536 tokens from step 8,200.
# First stage, section 3.2.1: the same, with eps 10. Second, section 3.2.2: most of that, at temperature 0.7, for 1,700 steps; length not stated.
_R1 = {
    "learning_rate": 3e-6,
    "prompts_per_step": 512,
    "samples_per_prompt": 16,
    "updates_per_rollout": 16,
    "temperature": 1.0,
    "max_completion_tokens": 32768,
    "refresh_reference_every": 400,
}

VARIANTS = (
    GRPO,
    replace(GRPO, name="dr_grpo", paper="arXiv:2503.20783", advantage=group_centre, aggregate="constant", kl_coef=0.0),
    replace(
        GRPO,
        name="dapo",
        paper="arXiv:2503.14476, eq. 8; its dynamic sampling here masks equal groups instead of drawing others",
        clip_high=0.28,
        aggregate="token_mean",
        kl_coef=0.0,
        mask_equal_groups=True,
    ),
    replace(
        GRPO, name="gspo", paper="arXiv:2507.18071, eq. 5 and section 5.1", ratio="sequence", clip_low=3e-4, clip_high=4e-4, kl_coef=0.0
    ),
    replace(
        GRPO,
        name="cispo",
        paper="arXiv:2506.13585, eq. 4 and 5; the bounds are not published: ours cut weights above 5 and none below",
        surrogate=clipped_weight_surrogate,
        clip_low=1.0,
        clip_high=4.0,
        aggregate="token_mean",
        kl_coef=0.0,
    ),
    replace(GRPO, name="dual_clip", paper="arXiv:1912.09729, eq. 5, with GRPO's advantages", surrogate=dual_clipped_surrogate),
    replace(
        GRPO,
        name="rloo",
        paper="arXiv:2402.14740, eq. 7, divergence in the reward; sums over tokens divided by a constant",
        advantage=leave_one_out,
        aggregate="constant",
        kl=k1,
        kl_coef=0.03,
        kl_in="reward",
    ),
    replace(
        GRPO,
        name="reinforce_pp",
        paper="arXiv:2501.03262, REINFORCE++ with a group baseline: k2 in the loss, normalised over the batch",
        advantage=group_centre,
        batch_normalise=True,
        aggregate="token_mean",
        kl=k2,
    ),
    replace(GRPO, name="gdpo", paper="arXiv:2601.05242: each reward normalised, then summed", per_reward=True, batch_normalise=True),
    replace(GRPO, name="grpo_unbiased_kl", paper="DeepSeek-V3.2 (arXiv:2512.02556), eq. 7: k3 times the ratio", kl_unbiased=True),
)

PRESETS = (
    replace(
        GRPO,
        name="deepseekmath",
        paper="arXiv:2402.03300, section 4.2; eps and temperature are not published: PPO's 0.2, and 1",
        kl_coef=0.04,
        published={
            "learning_rate": 1e-6,
            "prompts_per_step": 16,
            "samples_per_prompt": 64,
            "updates_per_rollout": 1,
            "max_completion_tokens": 1024,
        },
    ),
    replace(
        GRPO,
        name="r1_zero",
        paper="arXiv:2501.12948, section 2.1; eps is not published: PPO's 0.2; 32,768 tokens until update 8,200",
        published=_R1,
    ),
    replace(GRPO, name="r1_stage1", paper="arXiv:2501.12948, section 3.2.1; eps 10", clip_low=10.0, clip_high=10.0, published=_R1),
    replace(
        GRPO,
        name="r1_stage2",
        paper="arXiv:2501.12948, section 3.2.2: as the first at temperature 0.7; its length is not published: the first's",
        clip_low=10.0,
        clip_high=10.0,
        published={**_R1, "temperature": 0.7},
    ),
)

TABLE: dict[str, Algorithm] = {row.name: row for row in (*VARIANTS, *PRESETS)}


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
