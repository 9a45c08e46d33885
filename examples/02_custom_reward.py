"""A reward of your own: four lines in a file, named in a recipe, checked before anything is loaded.

    grpo run r1_zero_tiny 'stages.reason.rewards=[{use: math}, {use: ./examples/02_custom_reward.py:brief, limit: 30, weight: 0.2}]'

Positional parameters are columns of the data, or facts about the sample (completion, finish, num_tokens, prompt, prefill). Keyword-only ones
are settings, which the recipe may give. A number is a reward; None abstains, and the sample's other rewards count.
"""

from __future__ import annotations

from rewards import load_reward, reward


@reward()
def brief(num_tokens: int, finish: str, *, limit: int = 40) -> float | None:
    """1 for a completion of at most ``limit`` tokens; nothing to say of one that was cut off."""
    if finish == "length":
        return None
    return 1.0 if num_tokens <= limit else 0.0


def batch_style(prompts: list, completions: list[str], answer: list[str], **columns: object) -> list[float | None]:
    """The form that TRL and open-r1 use works unchanged: lists in, a list out."""
    return [1.0 if right in completion else 0.0 for completion, right in zip(completions, answer, strict=True)]


def main() -> None:
    checked = load_reward(f"{__file__}:brief", limit=10)
    print("9 tokens: ", checked(num_tokens=9, finish="stop"))
    print("11 tokens:", checked(num_tokens=11, finish="stop"))
    print("cut off:  ", checked(num_tokens=10, finish="length"))
    math = load_reward("math")
    print("math:     ", math(completion="<think> 3+4=7 </think> <answer> 7 </answer>", answer="7"))


if __name__ == "__main__":
    main()
