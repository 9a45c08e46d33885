"""The share of words in the target language, counted by hand."""

from __future__ import annotations

import pytest

from rewards import load_reward
from rewards.rules.language import language_share

ENGLISH = "First we add three and four."  # 6 words
CHINESE = "然后我们得到七"  # 7 characters


def test_mixed_thinking_scores_its_share() -> None:
    assert language_share(f"{ENGLISH} {CHINESE}。", "en") == pytest.approx(6 / 13)
    assert language_share(f"{ENGLISH} {CHINESE}。", "zh") == pytest.approx(7 / 13)


def test_a_foreign_word_inside_a_sentence_counts_alone() -> None:
    assert language_share("Now let the число of apples be even", "en") == pytest.approx(7 / 8)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (ENGLISH, "en"),
        (CHINESE, "zh"),
        ("Wir addieren zuerst drei und vier, also ist das Ergebnis sieben.", "de"),
        ("Donc la réponse est sept. Il faut ajouter trois et quatre.", "fr"),
        ("これは答えです。だから私たちは七を得ます", "ja"),
        ("Сначала сложим три и четыре, получим семь.", "ru"),
    ],
)
def test_each_language_is_itself_and_no_other(text: str, language: str) -> None:
    others = {"en", "zh", "de", "fr", "ja", "ru"} - {language}
    assert language_share(text, language) == 1
    assert [language_share(text, other) for other in others] == [0] * len(others)


def test_formulas_code_numbers_and_single_letters_are_no_words() -> None:
    text = r"Let $число = 3$ and \(\text{сумма}\) hold, x y z 12 34 `переменная` so we are done." + "\n```\nдля каждого\n```"
    assert language_share(text, "en") == 1
    assert language_share("x = 3, y = 4, $a^2$ 5 6 7 8 9", "en") is None


def test_terse_mathematics_is_not_taken_for_another_language() -> None:
    assert language_share("gcd mod sum. Hmm. Then total minus seven. Wait.", "en") == 1


def test_reward_reads_the_thinking_only_and_abstains_without_enough() -> None:
    english = load_reward("language")
    assert english(completion=f"<think>{ENGLISH}</think><answer>{CHINESE}</answer>") == 1
    assert english(completion=f"{ENGLISH}</think>", prefill="<think>\n") == 1
    assert english(completion="<think>so it is</think>") is None
    assert english(completion=ENGLISH) is None
    assert load_reward("language", language="zh")(completion=f"<think>{ENGLISH}</think>") == 0
