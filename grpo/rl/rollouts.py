"""The prompts of each step, in the stage's order, and the completions sampled for them."""

from __future__ import annotations

from collections.abc import Sequence

from grpo.data.prompt_order import prompt_order, taken
from grpo.rl.context import RlContext
from grpo.rl.prefetch import Poll, RolloutPrefetcher, StepRollout
from rollout.dispatcher import Progress
from rollout.pool import RolloutPool
from rollout.types import Completion, Prompt


class Rollouts:
    """The rollouts of all steps from ``first`` on, sampled by the prefetcher's thread.

    kept   rollouts that a resumed run still has from its checkpoint; see ``RolloutPrefetcher``
    """

    def __init__(self, context: RlContext, pool: RolloutPool, prompts: Sequence[Prompt], first: int = 0, kept: Sequence[StepRollout] = ()):
        self.context, self.pool, self.prompts = context, pool, prompts
        self.position = 0  # in the order: prompts consumed so far
        self._order = prompt_order(context.stage, prompts, context.seed)
        settings = context.recipe.rollout
        self.prefetcher = RolloutPrefetcher(
            pool,
            lambda step, poll: self.sample(self.prompts_of(step), step, poll),
            range(first, context.stage.steps),
            max_staleness=settings.max_staleness,
            is_deterministic=context.recipe.deterministic,
            in_flight=settings.weight_change == "in_flight",
            kept=kept,
        )

    def step(self, step: int) -> tuple[list[Prompt], StepRollout]:
        """The step's prompts and its rollout, waited for."""
        rollout = self.prefetcher.result(step)
        prompts = self.prompts_of(step)
        self.position += len(prompts)
        return prompts, rollout

    def prompts_of(self, step: int) -> list[Prompt]:
        """The prompts that a step begins with. Dynamic sampling consumes more of the order, and then no later step is prefetched."""
        stage = self.context.stage
        first = self.position if stage.dynamic_sampling else step * stage.prompts_per_step
        return self.prompts_at(first, stage.prompts_per_step)

    def prompts_at(self, position: int, count: int) -> list[Prompt]:
        return [self.prompts[i] for i in taken(self._order, position, count)]

    def sample(self, prompts: Sequence[Prompt], step: int, poll: Poll = lambda: None) -> list[list[Completion]]:
        """A group of completions for each prompt, by the weights that the engines hold now."""
        progress = self.context.progress

        def report(done: int, total: int) -> None:
            progress.doing(f"step {step + 1}: {done}/{total} samples generated")
            poll()

        return self._sample(prompts, self.context.stage.samples_per_prompt, step, report)

    def sample_probes(self, num_prompts: int, num_samples: int) -> tuple[list[Prompt], list[list[Completion]]]:
        """Samples of the first prompts, before the first step."""
        probes = list(self.prompts[:num_prompts])
        return probes, self._sample(probes, num_samples, -1, lambda *_: None)

    def _sample(self, prompts: Sequence[Prompt], num_samples: int, step: int, report: Progress) -> list[list[Completion]]:
        return self.pool.sample(
            prompts,
            num_samples,
            self.context.sampling,
            seed=self.context.seed,
            step=step,
            deadline_s=self.context.recipe.rollout.deadline_s,
            progress=report,
        )
