"""Short rule-made instructions that are not sums: what the recipe's later stages mix in, so that the model does not forget to follow words."""

from __future__ import annotations

import random
from typing import Any

from grpo.config import Tags
from grpo.errors import DataError

WORDS = (
    "apple bread chair cloud dance eagle field glass heart house juice knife lemon light money mouse night ocean paper plant "
    "queen river sheep spoon stone table tiger train water wheel"
).split()


MOST_ROWS = 20_000  # of the 30,816 that there are, so that drawing new ones stays quick


def general_rows(num_rows: int, seed: int, tags: Tags) -> list[dict[str, Any]]:
    """``num_rows`` rows, no two alike, with columns prompt, completion (in the tags) and answer, drawn from four kinds of instruction.
    Raises DataError for more than there are.
    """
    if num_rows > MOST_ROWS:
        raise DataError(f"general: at most {MOST_ROWS} rows can be made, {num_rows} asked for; ask for fewer")
    rng = random.Random(f"general-{seed}")
    makers = (_repeat, _first_letter, _last_word, _join)
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    while len(rows) < num_rows:
        question, thought, answer = rng.choice(makers)(rng)
        if question in seen:
            continue
        seen.add(question)
        completion = f" <{tags.think}> {thought} </{tags.think}> <{tags.answer}> {answer} </{tags.answer}>"
        rows.append({"prompt": question, "completion": completion, "answer": answer})
    return rows


def _repeat(rng: random.Random) -> tuple[str, str, str]:
    word = rng.choice(WORDS)
    return f"Say the word {word} twice", f"the word is {word}", f"{word} {word}"


def _first_letter(rng: random.Random) -> tuple[str, str, str]:
    word = rng.choice(WORDS)
    return f"Name the first letter of {word}", f"{word} begins with {word[0]}", word[0]


def _last_word(rng: random.Random) -> tuple[str, str, str]:
    words = rng.sample(WORDS, 3)
    return f"Name the last word of {' '.join(words)}", f"the last one is {words[-1]}", words[-1]


def _join(rng: random.Random) -> tuple[str, str, str]:
    first, second = rng.sample(WORDS, 2)
    return f"Join {first} and {second} with a dash", f"first {first} then {second}", f"{first}-{second}"
