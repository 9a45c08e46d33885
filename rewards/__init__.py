"""Reward functions and the runtime that runs them where they cannot hang, lie or leak. Imports neither torch nor grpo nor rollout.

A reward is a plain function: positional parameters are data columns (or reserved names such as ``completion``), keyword-only ones are
settings, and it returns a float, or None to abstain::

    from rewards import reward

    @reward(required=True)
    def short_and_right(completion: str, answer: str, *, limit: int = 200) -> float | None:
        return float(answer in completion and len(completion) <= limit)

``load_reward("./my.py:short_and_right", limit=100)`` gives it back as a checked callable; RewardRuntime scores whole batches in processes
that can be killed.
"""

from rewards.canary import canary_problems, read_golds, refused_golds, right_completions
from rewards.errors import RewardError, Undecidable
from rewards.function import RESERVED, Noted, RewardFn, reward
from rewards.load import SHIPPED, check_reward, load_reward
from rewards.runtime import RewardRuntime, RewardSpec, Scored, ScoreInput

__all__ = [
    "RESERVED",
    "SHIPPED",
    "Noted",
    "RewardError",
    "RewardFn",
    "RewardRuntime",
    "RewardSpec",
    "ScoreInput",
    "Scored",
    "Undecidable",
    "canary_problems",
    "check_reward",
    "load_reward",
    "read_golds",
    "reward",
    "right_completions",
    "refused_golds",
]
