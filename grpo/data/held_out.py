"""Which rows must not be trained on, because an evaluation asks the same?"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from grpo.config import EvalStage, MadeModel, Recipe, RejectStage, source_names
from rewards.rules.tokenize import words

BOILERPLATE = 10
"""Words in a row that stand in more held-out prompts than this are how the set puts its questions, not one question's own."""


def held_out_sources(recipe: Recipe) -> list[str]:
    """The sources that evaluations ask and nothing trains on. (An eval stage may measure training prompts, to know how hard they are.)"""
    trained = set(trained_sources(recipe))
    probes = {source.measured_in for source in recipe.data.values()}
    evaluations = [recipe.evaluation]
    evaluations += [stage.evaluation for stage in recipe.stages if isinstance(stage, EvalStage) and stage.name not in probes]
    asked = dict.fromkeys(evaluation.prompts for evaluation in evaluations if evaluation is not None)
    return [name for name in asked if name not in trained and name in recipe.data]


def trained_sources(recipe: Recipe) -> list[str]:
    """The names whose rows a model learns from or samples for learning."""
    names = [name for stage in recipe.stages for key in ("data", "prompts") for name in source_names(getattr(stage, key, None))]
    names += [mix.use for stage in recipe.stages if isinstance(stage, RejectStage) for mix in stage.mix]
    models = [recipe.model, *(stage.from_ for stage in recipe.stages)]
    return list(dict.fromkeys([*names, *(model.problems for model in models if isinstance(model, MadeModel))]))


def prompt_key(prompt: Any) -> str:
    """Two prompts of one key are the same question: case, kinds of white space, and width of characters do not count.

    One message of a user is the question that it holds.
    """
    if isinstance(prompt, list) and len(prompt) == 1 and prompt[0].get("role") == "user" and isinstance(prompt[0].get("content"), str):
        prompt = prompt[0]["content"]
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False, sort_keys=True)
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def prompt_text(prompt: Any) -> str:
    """A prompt's words: its own, or those of its messages."""
    return prompt if isinstance(prompt, str) else "\n".join(str(message.get("content") or "") for message in prompt)


class SharedWords:
    """Finds prompts that share ``num_words`` words in a row with a held-out one, or hold a shorter one as a whole."""

    def __init__(self, held_out: Iterable[Any], num_words: int):
        self.num_words = num_words
        counts: Counter[tuple[str, ...]] = Counter()
        self._whole: dict[int, set[tuple[str, ...]]] = {}
        for prompt in held_out:
            spoken = words(prompt_text(prompt))
            if len(spoken) < num_words:
                self._whole.setdefault(len(spoken), set()).add(tuple(spoken))
            counts.update(set(_runs(spoken, num_words)))
        self._own = {run for run, count in counts.items() if count <= BOILERPLATE}

    def found_in(self, prompt: Any) -> bool:
        spoken = words(prompt_text(prompt))
        return any(run in self._own for run in _runs(spoken, self.num_words)) or any(
            run in wholes for length, wholes in self._whole.items() if length for run in _runs(spoken, length)
        )


def _runs(spoken: Sequence[str], length: int) -> Iterable[tuple[str, ...]]:
    return zip(*(spoken[start:] for start in range(length)), strict=False)
