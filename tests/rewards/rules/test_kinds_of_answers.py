"""Kinds of answers that other graders get wrong: what is one answer, what two, what none; each rule stands in docs/rewards.md."""

from __future__ import annotations

import pytest

from rewards import RewardRuntime, RewardSpec, ScoreInput, load_reward
from rewards.rules.equality import form_problem, judge, judge_list, parts
from rewards.rules.extract import boxed_text
from rewards.rules.math import find_answer

SAME = [
    # joined by words
    (r"5 \text{ and } 12", "12, 5"),
    (r"x=3 \text{ or } x=-8", r"\{3, -8\}"),
    ("2, 17", r"2 \text{ and } 17"),
    (r"\boxed{2} and \boxed{17}", "2, 17"),
    (r"a<2 \text{ or } a>7", r"(-\infty,2)\cup(7,\infty)"),
    # letters side by side
    (r"\frac{rs}{r+s}", r"\frac{sr}{s+r}"),
    ("(a+4)(b+1)", "ab+a+4b+4"),
    ("3ab^2", "3b^2a"),
    (r"|BD|=2\sqrt{6}", r"2\sqrt{6}"),
    (r"MN=4+\sqrt{3}", r"4+\sqrt{3}"),
    # numbers
    ("6.1e23", r"6.1\times 10^{23}"),
    (r"2.5\times10^{-7}", "2.5e-7"),
    ("3.2e-12", "0.0000000000032"),
    ("62.5%", "62.5"),
    ("62.5%", "5/8"),
    ("2/3", "0.666667"),
    (r"\pi", "3.14159265"),
    ("0.30000000000000004", "0.3"),
    # what cancels, and large powers
    ("0", r"\sin(\pi)"),
    ("0", r"\cos\frac{\pi}{2}"),
    ("(y+2)^2-y^2-4y-4", "0"),
    ("2^{90}", "1237940039285380274899124224"),
    (r"\frac{1}{2500!}", r"\frac{1}{2500!}"),
    (r"0.\dot{4}", r"\frac49"),
    (r"0.\dot{1}\dot{8}", r"\frac{2}{11}"),
    ("0.(18)", "2/11"),
    ("1\u202f400\u202f000", "1400000"),
    # matrices
    (r"\left[\begin{array}{cc}3&1\\0&2\end{array}\right]", r"\begin{pmatrix}3&1\\0&2\end{pmatrix}"),
    (r"\begin{pmatrix}5\\7\end{pmatrix}", r"\begin{pmatrix}2\\3\end{pmatrix}+\begin{pmatrix}3\\4\end{pmatrix}"),
    # markup and characters
    ("51", "**51**"),
    ("51", "`51`"),
    ("51", "__51__"),
    ("51", "<b>51</b>"),
    ("51", r"\textcolor{red}{51}"),
    ("y-3", "**y-3**"),
    (r"2\sqrt{7}", "2√7"),
    ("(3,8)", "（3，8）"),
    ("-4", "– 4"),
    ("19", "答案：19"),
    ("x<9", "x＜9"),
    ("x^2", "x²"),
    ("\u200b6\u00a0", "6"),
    # times and units
    ("6:30", "6:30"),
    ("6:30 p.m.", "6:30"),
    ("6:30 p.m.", "18:30"),
    (r"4.5\text{ cm}", "4.5"),
    ("7 m", "7"),
    (r"3+2\mathrm{i}", "3+2i"),
    (r"1-\frac{2}{\mathrm{e}}", r"1-2e^{-1}"),
    (r"\sin 30^\circ", "1/2"),
    ("£35", "35"),
    ("35", "€35"),
    ("35", "US$35"),
    ("35", "35 dollars"),
    ("2012_4", "2012_{4}"),
    ("2012_4", "2012"),
    # fractions and products
    (r"\frac \pi4 + 1 - \sqrt2", r"1+\frac{\pi}{4}-\sqrt{2}"),
    ("15", "(3)(5)"),
    (r"\sqrt{12}", r"2\sqrt(3)"),
    # sets, intervals, relations
    (r"\{y|-1<y<6\}", "(-1,6)"),
    ("(1,5]", r"1<x\le 5"),
    (r"1<x\le 5", "(1,5]"),
    (r"(-\infty,4)", "m<4"),
    (r"m\ge\sqrt{3}", r"m\in[\sqrt{3},+\infty)"),
    (r"\frac{1\pm\sqrt{5}}{2}", r"\frac{1+\sqrt5}{2},\frac{1-\sqrt5}{2}"),
    ("2x-y+1=0", "y=2x+1"),
    ("x+2y=3", "2x+4y-6=0"),
    ("3:4", "6:8"),
    ("3:4", "3/4"),
    ("1,2,3", "3,2,1"),
    # sentences that say one value
    ("23", "The answer is 23."),
    ("23", "so x = 23"),
    ("x>3", "We find that $x > 3$."),
    ("4, 9", "The solutions are 4 and 9."),
    (r"\dfrac{a}{b}", r"\\frac{a}{b}"),  # escaped twice
    ("10", "2+8=10"),
]

DIFFERENT = [
    # large powers are compared to their last digit
    ("2^{90}-1", "2^{90}"),
    ("60!", "60!+1"),
    ("3^{2005}-1", "3^{2005}-2"),
    ("y+10^{-50}", "y"),
    (r"x=3 \text{ or } x=-8", "3"),
    ("12", r"12 \text{ or } 13"),
    (r"a<2 \text{ or } a>7", "a>7"),
    ("6xy", "6"),
    ("6xy", "6xz"),
    ("5ab^2", "5ab^3"),
    ("hk - 7", "7"),
    (r"MN=4+\sqrt{3}", "4"),
    ("3.2e-12", "0"),
    ("3.2e-12", "6.4e-12"),
    ("0.00000052", "0.00000013"),
    (r"\frac{1}{800!}", r"\frac{1}{801!}"),
    ("2/3", "0.6667"),
    ("1234567.89", "1234567.88"),
    ("7.2e31", "7.3e31"),
    ("23", "not 23"),
    ("23", "either 22 or 23"),
    ("23", "anything except 23"),
    ("23", "at least 23"),
    ("23", "perhaps 23"),
    ("8:45 p.m.", "May 8th"),
    ("6:30 am", "6:31 am"),
    ("6:30 am", "6:30 pm"),
    ("4t", "4"),
    (r"3-\frac{1}{\mathrm{e}}", "3"),
    ("5 cm", "5 km"),
    ("£35", "$35"),
    ("2012_4", "2012_5"),
    (r"\frac \pi4 + 1 - \sqrt2", "1"),
    ("$6$;$11$", "11"),
    (r"$\{x|-3\leq x < 5\}$", "5"),
    ("(1,5]", "(1,5)"),
    ("m<4", "n<4"),
    ("17", "x+y=17"),
    ("17", "2x=17"),
    ("x+y=17", "17"),
    ("x=17", "y=17"),
    ("8", "(3)(5)"),
    ("3,3,7", "3,7"),
    ("(3,7)", r"\{3,7\}"),
    ("(3,7)", "(7,3)"),
    ("4", r"4\sqrt(5)"),
    (r"1, 2, \ldots, n", r"1, 3, 5, \ldots, 2n-1"),
    ("33", "x + 3 3"),
    ("3x-y+13=0", "3x+4y+14=0"),
    ("3x-y+13=0", "0"),
]


@pytest.mark.parametrize(("gold", "answer"), SAME)
def test_one_answer(gold: str, answer: str) -> None:
    assert judge(gold, answer) == "same"


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_two_answers_or_none(gold: str, answer: str) -> None:
    assert judge(gold, gold) == "same" and judge(gold, answer) in ("different", "undecidable")


@pytest.mark.parametrize(("gold", "answer"), SAME[::3])
def test_equality_has_no_direction(gold: str, answer: str) -> None:
    assert judge(answer, gold) == "same"


LIST = ["$5$", "12"]


@pytest.mark.parametrize(
    ("gold", "wanted", "answer", "verdict"),
    [
        (LIST, "all", "5", "different"),
        (LIST, "all", "12, 5", "same"),
        (LIST, "any", "12", "same"),
        (LIST, "any", "13", "different"),
        ("['$5$', '12']", "all", "5 and 12", "same"),
        ('["5", "12"]', "any", "5", "same"),
        ([5, 12], "all", "5, 12", "same"),
        (["1/2", "0.5"], "all", r"\frac12", "same"),  # one value, written twice
        (["7"], "all", "7", "same"),
        ("[5, 12]", "all", "[5,12]", "same"),  # an interval is no list
        ("[5, 12]", "all", "5", "different"),
    ],
)
def test_a_gold_answer_may_be_a_list(gold: object, wanted, answer: str, verdict: str) -> None:
    assert judge_list(parts(gold), answer, wanted) == verdict
    score = load_reward("math", gold_list=wanted)(completion=f"<answer>{answer}</answer>", answer=gold)
    assert score == (1 if verdict == "same" else 0)


DAMAGED = ["\x0crac{1}{4}", "\x08inom{5}{2}", "3\times 4"]


def test_a_lost_backslash_is_named() -> None:
    assert all("has lost a backslash" in (form_problem(gold) or "") for gold in DAMAGED)
    with RewardRuntime([RewardSpec("math")]) as runtime:
        inputs = [ScoreInput({"completion": "<answer>1/4</answer>", "answer": gold}) for gold in DAMAGED]
        for scored in runtime.score(inputs):
            assert scored.reward is None and "write \\\\ for each \\" in scored.notes["math"]


@pytest.mark.parametrize("answer", ["not readable at all", "?", r"\frac{1}{", "1 2 3 4", "(", "x = ", "$", "\\"])
def test_what_cannot_be_read_is_undecidable_and_no_error(answer: str) -> None:
    assert judge("5", answer) in ("undecidable", "different")


PATHOLOGICAL = [
    "(" * 300 + "1" + ")" * 300,
    "1000000!",
    r"\binom{10^6}{5*10^5}",
    r"\tan(\sin(\tan(\sin(\tan(\sin(x))))))",
    "+".join(f"a_{{{index}}}" for index in range(100)),
    "(x+1)^{1000}",
    "9^{9^{9^9}}",
    "2^{99999999}",
    r"\sqrt{" * 60 + "2" + "}" * 60,
    "1,2;" * 200,
    "-" * 900 + "1",
]


@pytest.mark.parametrize("answer", PATHOLOGICAL)
def test_formulas_out_of_proportion_are_no_burden(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """Their values are taken at points, or said to be out of reach; an algebra system is not asked, which might never answer."""
    monkeypatch.setattr("rewards.rules.values.by_math_verify", lambda *_: pytest.fail("left to math-verify"))
    assert judge(r"x^2+\sqrt{3}", answer) != "same"


THINKING = r"<think> so <answer>8</answer>, \boxed{8}"


@pytest.mark.parametrize(
    ("how", "after", "text", "found"),
    [
        ("answer_tag", None, THINKING, "8"),
        ("answer_tag", True, THINKING, None),
        ("boxed", None, THINKING, None),
        ("boxed", False, THINKING, "8"),
        ("auto", None, r"<think> \boxed{8} </think> It is 9.", "9"),
        ("boxed", None, r"<think> \boxed{8} </think> It is 9.", None),
        ("boxed", None, r"<think> \boxed{8} </think> \boxed{9}", "9"),
        ("boxed", None, r"no thinking, \boxed{9}", "9"),
        ("last_number", None, "<think> 8", "8"),
    ],
)
def test_an_answer_may_be_read_after_the_thinking_only(how, after: bool | None, text: str, found: str | None) -> None:
    assert find_answer(text, how, after_thinking=after) == found


def test_thinking_that_the_template_began_counts_as_thinking() -> None:
    assert find_answer(r"\boxed{8}", "boxed", after_thinking=True, prefill="<think>\n") is None
    assert load_reward("math", extract="boxed")(completion=r"\boxed{8}", answer="8", prefill="<think>\n") == 0


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"\boxed 5", "5"),
        (r"\boxed {5}", "5"),
        (r"\fbox{5}", "5"),
        (r"so \boxed{5}, no, \boxed{6}.", "6"),
        (r"$\boxed{5}$ and $\boxed{6}$", "5, 6"),
        (r"\boxed{5} \quad \text{or} \quad \boxed{6}", "5, 6"),
        (r"\boxed{5} hm \boxed{", "5"),
    ],
)
def test_boxes(text: str, inside: str) -> None:
    assert boxed_text(text) == inside
