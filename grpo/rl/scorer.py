"""Scoring a step's rollouts by the rewards, with the weights that their schedules give at that step."""

from __future__ import annotations

from collections.abc import Sequence

from grpo.errors import TrainingError
from grpo.resources.scoring import score_groups, weights_at
from grpo.rl.context import RlContext
from grpo.types import Group
from rewards import RewardRuntime
from rollout.types import Completion, Prompt


class GroupScorer:
    """Scores groups, and reports each reward's first error once."""

    def __init__(self, context: RlContext, rewards: RewardRuntime):
        self.context, self.rewards = context, rewards
        self._reported: set[str] = set()

    def weights(self, step: int) -> dict[str, float]:
        """The rewards' weights at the first update of a step, by name. A reward whose schedule is at 0 is absent, and not run."""
        return weights_at(self.context.stage.rewards, step * self.context.stage.updates_per_rollout)

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], step: int) -> list[Group]:
        """The step's first groups: changed weights and new errors are reported."""
        self._report_changed_weights(step)
        groups = self.score_more(prompts, completions, step)
        for name in self.rewards.first_error.keys() - self._reported:
            self.context.progress.say(f"  {self.rewards.first_error[name]}")
            self._reported.add(name)
        return groups

    def score_more(self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], step: int) -> list[Group]:
        """Groups that dynamic sampling adds to the step."""
        return score_groups(self.rewards, prompts, completions, self.weights(step))

    def check_scored(self, groups: Sequence[Group], step: int) -> None:
        """Raises TrainingError, with the rewards' first errors, if no sample of the step has a reward."""
        if all(sample.reward is None for group in groups for sample in group.samples):
            errors = "".join(f"; {text}" for text in self.rewards.first_error.values())
            raise TrainingError(f"step {step + 1}: no sample could be judged{errors}")

    def _report_changed_weights(self, step: int) -> None:
        updates = self.context.stage.updates_per_rollout
        for use in self.context.stage.rewards:
            weight = use.weight_at(step * updates)
            if use.is_scheduled and (step == 0 or weight != use.weight_at((step - 1) * updates)):
                how = f"has weight {weight:g}" if weight else "has weight 0 and is not run"
                self.context.progress.say(f"  from step {step + 1} on: reward {use.part!r} {how}")
