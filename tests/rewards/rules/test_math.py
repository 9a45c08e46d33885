"""Right and wrong answers, each with its reason; undecidable ones; and the same score from wherever it is asked."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest

from rewards import load_reward, processes
from rewards.rules.equality import judge, plain_number, same_number
from rewards.rules.math import find_answer

SAME = [
    # gold, answer, why they are the same
    ("42", "42.0", "a decimal that is an integer"),
    ("42", "+42", "a plus sign"),
    ("42", "042", "leading zeros"),
    ("-7", "\u22127", "a typographic minus"),
    ("42", "42.", "the end of a sentence"),
    ("42", "$42$", "dollar signs"),
    ("1234", "1,234", "thousands separators"),
    ("1,234", "1234", "thousands separators in the gold answer"),
    ("1234", "1{,}234", "a LaTeX thousands separator"),
    ("1000000", "1 000 000", "spaces as separators"),
    (".5", "0.5", "no leading zero"),
    ("1/2", "0.5", "a fraction and its decimal"),
    (r"\frac12", "2/4", "a LaTeX fraction without braces, not reduced"),
    (r"\frac{1}{2}", r"\dfrac{1}{2}", "another fraction command"),
    (r"-\frac{2}{3}", r"\frac{-2}{3}", "where the minus stands"),
    ("1/3", "0.333333", "rounded to six decimals"),
    (r"0.\overline{3}", "1/3", "a periodic decimal"),
    ("1 1/2", "3/2", "a mixed number"),
    (r"1\frac{1}{2}", "1.5", "a mixed number in LaTeX"),
    ("50%", "0.5", "percent"),
    (r"50\%", "50", "a percent sign left out"),
    ("5", "5 cm", "a unit"),
    (r"\frac{3}{4}", r"\frac{3}{4}\text{ miles}", "a unit in LaTeX"),
    (r"\$18.90", "18.9", "money"),
    (r"90^\circ", "90", "degrees"),
    ("30000", r"3\times 10^4", "scientific notation in LaTeX"),
    ("30000", "3 x 10^4", "scientific notation in ASCII"),
    ("100000", "1e5", "scientific notation of programs"),
    (r"2\sqrt{3}", "sqrt(12)", "a root, simplified and in ASCII"),
    (r"2\pi", "2*pi", "pi in ASCII"),
    (r"2\pi", "2π", "pi as a letter"),
    ("6", "2 + 4", "a sum that was not worked out"),
    ("120", "5!", "a factorial"),
    ("2x+1", "1+2x", "a bare polynomial, reordered"),
    ("(x+1)^2", "x^2+2x+1", "expanded"),
    ("5", "x = 5", "an equation that says the value"),
    ("x=1 or x=2", r"\{2, 1\}", "solutions as a set"),
    ("1,2", "2,1", "solutions in another order"),
    (r"\pm 2", "2, -2", "plus-minus"),
    ("(1,2)", "(1, 2)", "a pair"),
    ("[0,1)", "[0, 1)", "an interval"),
    (r"(-\infty, 3)", "(-oo, 3)", "infinity in ASCII"),
    ("x>3", "3<x", "an inequality, turned round"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}", "a vector"),
    ("2+3i", "3i+2", "a complex number"),
    (r"\text{Evelyn}", "evelyn", "a name"),
    (r"\text{Red Car}", r"red\ car.", "words, whatever the case and the spacing"),
    (r"\textbf{(B)}", "B", "a letter of a multiple choice"),
    ("42", "The answer is 42.", "a sentence"),
    ("#### 42", "42", "a gold answer as GSM8K writes it"),
    (r"\frac{1}{2}", r"It is \boxed{\frac{1}{2}}.", "a box inside the answer block"),
    ("12", "12 apples", "what is counted"),
    (r"5\text{ cm}^2", "5", "a unit with a power"),
    ("3.50", r"\$3.50", "a currency"),
    ("0.25", "25/100", "hundredths"),
    ("2 1/4", "2.25", "a mixed number and its decimal"),
    ("0", "-0", "there is one zero"),
    (r"\frac{22}{7}", "22/7", "a fraction in ASCII"),
    (r"100^\circ", r"100^{\circ}", "braces that change nothing"),
    ("2^{10}", "1024", "a power"),
    (r"3^{-2}", r"\frac19", "a negative power"),
    (r"\log_2 8", "3", "a logarithm"),
    (r"\ln 4", r"2\ln 2", "a rule of logarithms"),
    (r"\sin(\pi/6)", "1/2", "a value of the sine"),
    (r"\binom{5}{2}", "10", "a binomial coefficient"),
    ("e^{2x}", r"\exp(2x)", "two ways to write the exponential function"),
    (r"\sqrt{2}/2", r"\frac{1}{\sqrt{2}}", "a rationalised denominator"),
    (r"\frac{1+\sqrt{5}}{2}", r"\frac{\sqrt5+1}{2}", "the golden ratio"),
    ("a+b", "b+a", "a sum of letters"),
    ("x(x+1)", "x^2+x", "multiplied out"),
    (r"\frac{x^2-1}{x-1}", "x+1", "cancelled"),
    ("y=2x+1", "2x+1=y", "an equation, turned round"),
    (r"x \in [1,2]", "[1,2]", "a membership and its interval"),
    (r"\left(\frac12,3\right)", "(0.5, 3)", "a pair, one of it a decimal"),
    (r"\{1,2,3\}", r"\{3,1,2\}", "a set has no order"),
    (r"\boxed{8}", "8", "a gold answer in a box"),
]

DIFFERENT = [
    ("42", "43", "another number"),
    ("7", "-7", "another sign"),
    ("1234", "1.234", "a decimal point is no separator"),
    ("1/3", "0.3333", "rounded too much"),
    (r"0.\overline{3}", "0", "the period counts"),
    ("50%", "51%", "another percentage"),
    ("100000", "15", "1e5 is not 1, e, 5"),
    ("2x+1", "2", "a polynomial is not its first number"),
    ("(x+1)^2", "x^2+1", "wrongly expanded"),
    ("5", "x = 6", "another value"),
    ("1, 2", "1", "one of two solutions"),
    ("42", "42 or 43", "a hedge"),
    ("(1,2)", "(2,1)", "a pair has an order"),
    ("[0,1)", "[0,1]", "a closed end"),
    ("x>3", "x<3", "the other side"),
    ("2+3i", "2-3i", "the conjugate"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}", "another vector"),
    (r"\text{even}", "odd", "another word"),
    (r"\text{Evelyn}", "Nelvye", "the same letters"),
    ("x + 11", "x + 1 1", "spaces matter between digits"),
    ("A", "B", "another choice"),
    ("10:30", "10", "half of a time"),
    ("42", "", "nothing"),
    ("12", "21", "digits in another order"),
    ("0.1", "0.01", "another magnitude"),
    ("-5", "5", "the sign left out"),
    ("3/4", "4/3", "upside down"),
    ("10%", "10.5%", "not quite the percentage"),
    ("90", "90.5", "not quite the number"),
    ("6", "2 + 3", "a sum with another value"),
    ("2", "2 or 3", "another hedge"),
    (r"\sqrt{2}", "1.41", "a root rounded too much"),
    (r"\sqrt{2}", "2", "the root left out"),
    (r"\pi", "3.14", "pi rounded too much"),
    ("2^{10}", "20", "a power is no product"),
    (r"\log_2 8", "log 8", "another base"),
    (r"\sin x", r"\cos x", "another function"),
    ("x^2", "2x", "a square is no double"),
    ("a-b", "b-a", "a difference has an order"),
    (r"x \le 3", "x<3", "the end left out"),
    ("[1,2]", "(1,2)", "both ends left out"),
    ("(1,2,3)", "(1,2)", "a coordinate left out"),
    (r"\{1,2\}", r"\{1,2,3\}", "an element too many"),
    (r"\text{(B)}", "C", "another choice in LaTeX"),
]


@pytest.fixture(scope="module")
def math():
    return load_reward("math")


@pytest.mark.parametrize(("gold", "answer", "why"), SAME)
def test_same_value(math, gold: str, answer: str, why: str) -> None:
    assert math(completion=f"<think>x</think><answer>{answer}</answer>", answer=gold) == 1, why


@pytest.mark.parametrize(("gold", "answer", "why"), DIFFERENT)
def test_different_value(math, gold: str, answer: str, why: str) -> None:
    assert math(completion=f"<think>x</think><answer>{answer}</answer>", answer=gold) == 0, why


def test_the_pairs_are_many_and_comparing_strings_would_not_do() -> None:
    pairs = {(gold, answer) for gold, answer, _ in SAME + DIFFERENT}
    assert len(pairs) == len(SAME) + len(DIFFERENT) >= 100
    assert sum(gold != answer for gold, answer, _ in SAME) >= 30


@pytest.mark.parametrize("gold", [None, "", "  ", "Paris", "not a number", "???", r"\frac{1}{", "1/0", float("nan"), "1" * 2000])
def test_a_gold_answer_that_cannot_be_read_abstains(math, gold: object) -> None:
    assert math(completion="<answer>5</answer>", answer=gold) is None


def test_gold_answers_need_not_be_text(math) -> None:
    assert math(completion="<answer>5</answer>", answer=5) == 1 and math(completion="<answer>0.5</answer>", answer=0.5) == 1


def test_fast_path_agrees_with_math_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pair of plain numbers, once by exact fractions and once by math-verify alone."""
    texts = ["0", "7", "-7", "7.0", "0.5", "1/2", "2/4", "1/3", "0.333333", "0.3333", "-1.5", "-3/2", "1,234", "1234", "1e3", "1000"]
    numbers = {text: plain_number(text) for text in texts}
    assert None not in numbers.values()
    by_fractions = {(a, b): same_number(numbers[a], numbers[b]) for a in texts for b in texts}
    # Without the fast path, math-verify reads each text by itself. What it cannot read unaided (1e3) is left out.
    monkeypatch.setattr("rewards.rules.equality.plain_number", lambda text: None)
    by_math_verify = {(a, b): judge(a, b) == "same" for a in texts for b in texts if "e" not in a + b}
    assert {pair: by_fractions[pair] for pair in by_math_verify} == by_math_verify


def test_plain_numbers_are_fast_and_start_no_process(monkeypatch: pytest.MonkeyPatch, math) -> None:
    monkeypatch.setattr(processes.Processes, "submit", lambda *_, **__: pytest.fail("a process for a plain number"))
    start = time.process_time()
    scores = [math(completion=f"<answer>{n}</answer>", answer=str(n % 3)) for n in range(2000)]
    assert sum(scores) == 3 and time.process_time() - start < 1


@pytest.mark.parametrize("answer", ["7", r"\frac{14}{2}", "8"])
def test_a_thread_scores_as_the_main_thread_does(math, answer: str) -> None:
    scores: list[float | None] = []
    thread = threading.Thread(target=lambda: scores.append(math(completion=f"<answer>{answer}</answer>", answer="7")))
    thread.start()
    thread.join()
    assert scores == [math(completion=f"<answer>{answer}</answer>", answer="7")]


EVERYWHERE = [*SAME[::8], *DIFFERENT[::8], ("42", "9^{9^{9^9}}", "undecidable"), ("Paris", "5", "an unreadable gold answer")]


@pytest.mark.slow
def test_a_ray_actor_and_asyncio_score_as_the_main_thread_does(math, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signals, on which math-verify's own timeouts rest, work in the main thread only."""
    import ray

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    completions = [(f"<answer>{answer}</answer>", gold) for gold, answer, _ in EVERYWHERE]

    class Judge:
        def scores(self, pairs: list[tuple[str, str]]) -> list[float | None]:
            math = load_reward("math")
            return [math(completion=completion, answer=gold) for completion, gold in pairs]

    class AsyncJudge:
        async def scores(self, pairs: list[tuple[str, str]]) -> list[float | None]:
            return Judge().scores(pairs)

    async def gathered() -> list[float | None]:
        return await asyncio.gather(*[asyncio.to_thread(math, completion=completion, answer=gold) for completion, gold in completions])

    async def in_the_loop() -> list[float | None]:
        return Judge().scores(completions)

    expected = Judge().scores(completions)
    assert expected == [1.0] * len(SAME[::8]) + [0.0] * len(DIFFERENT[::8]) + [0.0, None]
    assert asyncio.run(gathered()) == asyncio.run(in_the_loop()) == expected
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR")
    try:
        found = [ray.remote(kind).options(num_cpus=0).remote().scores.remote(completions) for kind in (Judge, AsyncJudge)]
        assert ray.get(found, timeout=120) == [expected, expected]
    finally:
        ray.shutdown()


def test_called_directly_a_hanging_comparison_is_killed(monkeypatch: pytest.MonkeyPatch, math) -> None:
    monkeypatch.setattr("rewards.rules.math.DEADLINE_S", 0.7)
    start = time.perf_counter()
    assert math(completion="<answer>9^{9^{9^9}}</answer>", answer="42") == 0
    assert time.perf_counter() - start < 15
    assert math(completion=r"<answer>\frac{84}{2}</answer>", answer="42") == 1  # and the next one is judged as ever


TEXT = r"<think>first 3, then \boxed{4}</think><answer>so 5</answer> or 6"


@pytest.mark.parametrize(
    ("how", "text", "found"),
    [
        ("answer_tag", TEXT, "so 5"),
        ("answer_tag", r"\boxed{4}", None),
        ("answer_tag", r"<answer>so \boxed{4}, 9</answer>", "4"),
        ("boxed", TEXT, "4"),
        ("boxed", "<answer>5</answer>", None),
        ("last_number", TEXT, "6"),
        ("last_number", "no idea", None),
        ("auto", TEXT, "so 5"),
        ("auto", r"3, \boxed{4}, 6", "4"),
        ("auto", "3 and 6", "6"),
        ("auto", "no idea", None),
    ],
)
def test_where_the_answer_is_looked_for(how, text: str, found: str | None) -> None:
    assert find_answer(text, how) == found


def test_extraction_settings_reach_the_score() -> None:
    assert load_reward("math", extract="last_number")(completion=TEXT, answer="6") == 1
    assert load_reward("math", extract="boxed")(completion=TEXT, answer="4") == 0  # a box in the thinking is no answer
    assert load_reward("math", extract="boxed", after_thinking=False)(completion=TEXT, answer="4") == 1
    assert load_reward("math", answer_tag="final")(completion="<final>7</final>", answer="7") == 1
