"""format, exact, fuzzy, choice, length and repetition, by hand; reasoning_gym, by its tasks' verifiers."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewards import RewardError, RewardRuntime, RewardSpec, load_reward
from rewards.rules.repetition import looped_share, repeated_ngram_share


@pytest.mark.parametrize(
    ("completion", "score", "why"),
    [
        ("<think>2+2</think><answer>4</answer>", 1, "the form itself"),
        ("\n<think>\n2+2\n</think>\n\n<answer>4</answer>\n", 1, "whitespace outside and inside"),
        ("<think>2+2</think><answer>4</answer> done", 0, "text after the answer"),
        ("So <think>2+2</think><answer>4</answer>", 0, "text before the thinking"),
        ("<think>2+2</think> so <answer>4</answer>", 0, "text between the blocks"),
        ("<answer>4</answer><think>2+2</think>", 0, "the wrong order"),
        ("<think>2+2<answer>4</answer></think>", 0, "the answer inside the thinking"),
        ("<think>a</think><think>b</think><answer>4</answer>", 0, "two think blocks"),
        ("<think>a</think><answer>3</answer><answer>4</answer>", 0, "two answers"),
        ("<think>is it <answer>?</think><answer>4</answer>", 0, "a stray tag"),
        ("<think></think><answer>4</answer>", 0, "no thinking"),
        ("<think>2+2</think><answer> </answer>", 0, "no answer"),
        ("<think>2+2</think><answer>4", 0, "cut off"),
        ("4", 0, "no tags"),
        ("", 0, "nothing"),
        ("<think>.</think><answer>4</answer>", 1, "little thinking"),
        ("<think>x</think><answer>\u200b</answer>", 0, "an answer that nobody sees"),
        ("<think>\u2060\ufeff\u3164</think><answer>4</answer>", 0, "thinking that nobody sees"),
        ("\ufeff<think>x</think>\u200b<answer>4</answer>", 1, "nothing to be seen outside"),
    ],
)
def test_format(completion: str, score: float, why: str) -> None:
    assert load_reward("format")(completion=completion) == score, why


def test_format_judges_the_prefilled_tag_too() -> None:
    form = load_reward("format")
    assert form(completion="2+2</think><answer>4</answer>", prefill="<think>\n") == 1
    assert form(completion="<think>2+2</think><answer>4</answer>", prefill="<think>\n") == 0  # opened twice
    assert form(completion="2+2</think><answer>4</answer>", prefill="") == 0


def test_format_with_other_tags() -> None:
    assert load_reward("format", think_tag="t", answer_tag="a")(completion="<t>x</t><a>y</a>") == 1


def test_exact_ignores_case_and_spacing_only() -> None:
    exact = load_reward("exact")
    assert exact(completion="<answer> the  CAPITAL\n</answer>", answer="The capital") == 1
    assert exact(completion="<answer>the capitals</answer>", answer="The capital") == 0
    assert exact(completion="The capital", answer="The capital") == 0  # no answer block
    assert exact(completion="<answer>0</answer>", answer=0) == 1
    assert exact(completion="<answer></answer>", answer="") is None and exact(completion="x", answer=None) is None


@pytest.mark.parametrize("use", ["exact", "fuzzy"])
def test_texts_are_compared_with_any_of_a_list_and_with_nothing_else(use: str) -> None:
    compare = load_reward(use)
    assert compare(completion="<answer>New York</answer>", answer=["NYC", "new york"]) == 1
    assert compare(completion="<answer>true</answer>", answer=True) == 1
    for gold in ({"value": 7}, float("nan"), [], ["7", ""], [{"value": 7}]):
        assert compare(completion="<answer>7</answer>", answer=gold) is None


@pytest.mark.parametrize(("num_tokens", "score"), [(0, 0), (80, 0), (81, -0.05), (90, -0.5), (99, -0.95), (100, -1), (500, -1)])
def test_length_falls_linearly_over_the_buffer(num_tokens: int, score: float) -> None:
    """DAPO: ((max - buffer) - length) / buffer; with max 100 and buffer 20, (80 - 90) / 20 = -0.5."""
    assert load_reward("length", max_tokens=100, buffer=20)(num_tokens=num_tokens) == pytest.approx(score)
    assert load_reward("length", max_tokens=100)(num_tokens=num_tokens) == pytest.approx(score)  # a fifth by default


def test_length_without_a_buffer_is_a_cliff() -> None:
    length = load_reward("length", max_tokens=10, buffer=0)
    assert (length(num_tokens=10), length(num_tokens=11)) == (0, -1)


def test_repetition_counts_ngrams_that_come_again() -> None:
    """a b a b a: the bigrams ab ba ab ba are four, two of them distinct: 1 - 2/4."""
    assert repeated_ngram_share(list("ababa"), 2) == 0.5
    assert load_reward("repetition", n=2)(completion="A b a B a") == -0.5
    assert load_reward("repetition", n=2, max_penalty=3)(completion="a b a b a") == -1.5


def test_repetition_of_nothing_or_little_is_none() -> None:
    assert repeated_ngram_share(list("abcde"), 2) == 0
    assert repeated_ngram_share(["a"], 2) == 0 and repeated_ngram_share([], 2) == 0
    assert str(load_reward("repetition")(completion="short")) == "0.0"  # not -0.0


def test_repetition_of_a_loop_is_nearly_all() -> None:
    assert load_reward("repetition")(completion="wait no " * 200) < -0.98


def test_repetition_sees_chinese_written_without_spaces() -> None:
    assert load_reward("repetition", n=2)(completion="等等等等等") == -0.75  # four bigrams, one distinct


@pytest.mark.parametrize(
    "text",
    ["haha" * 250, "0" * 500, "0." + "3" * 1000, "." * 1000, "}" * 700, "😂" * 500, "👩\u200d👧" * 500, "\n" * 1000, "\n \n" * 300],
)
def test_repetition_sees_loops_without_words(text: str) -> None:
    assert load_reward("repetition")(completion=text) < -0.99
    assert load_reward("repetition")(completion=f"Let me see what that is: {text}") < -0.9
    assert load_reward("repetition", max_penalty=2)(completion=text) < -1.98


def test_a_loop_counts_by_the_characters_in_it() -> None:
    """Of 1,000 characters 500 are a loop, the first of which repeats nothing; where it begins does not matter."""
    varied = "".join(chr(0x4E00 + n) for n in range(500))
    for start in (0, 1, 63, 250, 500):
        assert looped_share(varied[:start] + "." * 500 + varied[start:]) == pytest.approx(0.499)


@pytest.mark.parametrize(
    "text",
    [
        str(2**4000),
        "1" + "0" * 100,
        "| a | b |\n|" + "---|" * 30 + "\n" + "|    1 |    2 |\n",
        "=" * 120 + "\nheader\n" + "=" * 120,
        Path(__file__).read_text(),
        "    " * 20 + "}\n" + "}" * 40,
        "",
    ],
)
def test_long_numbers_tables_rules_and_code_are_no_loops(text: str) -> None:
    assert looped_share(text) == 0


CITIES = ["Berlin", "Paris", "A cat", "Both A and B"]


@pytest.mark.parametrize(
    ("given", "score", "why"),
    [
        ("B", 1, "its letter"),
        ("(b)", 1, "its letter, small and in brackets"),
        ("**B**", 1, "in bold"),
        (r"\textbf{(B)}", 1, "in LaTeX"),
        (r"It is \boxed{B}", 1, "in a box"),
        ("Option B.", 1, "named an option"),
        ("paris", 1, "its text"),
        ("B) Paris", 1, "both"),
        ("B: Paris.", 1, "both, otherwise dressed"),
        ("B) Berlin", 0, "a letter with another option's text"),
        ("A", 0, "another letter"),
        ("A cat", 0, "another option's text that begins with a letter"),
        ("Berlin", 0, "another option's text"),
        ("A or B", 0, "two letters"),
        ("A, B", 0, "two letters"),
        ("Both A and B", 0, "an option that names letters"),
        ("E", 0, "no option's letter"),
        ("", 0, "nothing"),
    ],
)
def test_choice_by_letter_or_by_text(given: str, score: float, why: str) -> None:
    choice = load_reward("choice")
    for options in (CITIES, dict(zip("abcd", CITIES, strict=True))):
        for gold in ("B", "(B)", "Paris", 1):
            assert choice(completion=f"A? <answer>{given}</answer>", answer=gold, options=options) == score, why


NUMBERS = ["12", "15", "20", "8"]


@pytest.mark.parametrize(
    "given",
    ["（B）", "Ｂ", "B、", "B．", "选B", "选 B。", "答案是B", "答案：B", "故选：B", "正确答案为（B）", "【B】", "`B`", "The answer is B",
     "I choose B", "So the correct answer is (B).", "My final answer is option B", "B, because it fits", "B because it fits",
     "B, since A is too small", "B (15)", "B - 15", "B = 15", "B、15", "15.0", "15.00"],
)  # fmt: skip
def test_choice_as_people_and_chatty_models_write_it(given: str) -> None:
    choice = load_reward("choice")
    assert choice(completion=f"<answer>{given}</answer>", answer="B", options=NUMBERS) == 1
    assert choice(completion=f"<answer>{given}</answer>", answer="A", options=NUMBERS) == 0
    if not given.startswith("15"):
        assert choice(completion=f"<answer>{given}</answer>", answer="B") == 1


@pytest.mark.parametrize(
    "given",
    ["A or B", "B or A", "not B", "B/C", "B and C", "BC", "B (20)", "B - 20", "B, C", "B but maybe C", "B, because of C", "选A或B", "not sure, B",
     "B? No.", "Is it B"],
)  # fmt: skip
def test_hedging_chooses_nothing(given: str) -> None:
    assert load_reward("choice")(completion=f"<answer>{given}</answer>", answer="B", options=NUMBERS) == 0
    if "20" not in given:
        assert load_reward("choice")(completion=f"<answer>{given}</answer>", answer="B") == 0


def test_choice_without_options_takes_no_word_for_a_letter() -> None:
    choice = load_reward("choice")
    assert (
        choice(completion="<answer>A cat</answer>", answer="A") == 0 and choice(completion="<answer>I think so</answer>", answer="I") == 0
    )


@pytest.mark.parametrize(
    ("gold", "letter"), [("C．", "C"), ("（C）", "C"), ("(c)", "C"), ("C、20", "C"), (2, "C"), (2.0, "C"), ("20.0", "C")]
)
def test_choice_reads_gold_answers_as_keys_write_them(gold: object, letter: str) -> None:
    choice = load_reward("choice")
    for given in "ABCD":
        assert choice(completion=f"<answer>{given}</answer>", answer=gold, options=NUMBERS) == (given == letter)


@pytest.mark.parametrize("gold", ["BC", "A or B", 20, 2.5, float("nan"), True, {"a": 1}, ["B"], "not B"])
def test_choice_abstains_on_a_gold_answer_that_names_no_option(gold: object) -> None:
    assert load_reward("choice")(completion="<answer>B</answer>", answer=gold, options=NUMBERS) is None


def test_options_may_be_json_and_no_other_text() -> None:
    choice = load_reward("choice")
    for options in ('["12", "15"]', '{"A": "12", "B": 15}', "[12, 15]"):
        assert choice(completion="<answer>15</answer>", answer="B", options=options) == 1
        assert choice(completion="<answer>1</answer>", answer="B", options=options) == 0
    with pytest.raises(
        RewardError, match="column 'options': expected a list of texts, or {letter: text}, or one of them as JSON; found '12, 15'"
    ):
        choice(completion="<answer>B</answer>", answer="B", options="12, 15")


def test_choice_without_options_knows_letters_only() -> None:
    choice = load_reward("choice")
    assert choice(completion="<answer>(B)</answer>", answer="B") == 1 and choice(completion="<answer>B. Paris</answer>", answer="b") == 1
    assert choice(completion="<answer>Paris</answer>", answer="B") == 0 and choice(completion="<answer>B) C)</answer>", answer="B") == 0
    assert choice(completion="B", answer="B") == 0  # no answer block


def test_choice_abstains_where_the_gold_answer_is_no_option() -> None:
    choice = load_reward("choice")
    for gold, options in (
        ("E", CITIES),
        ("Rome", CITIES),
        (4, CITIES),
        (-1, CITIES),
        (None, CITIES),
        ("", CITIES),
        ("Paris", None),
        (1, None),
    ):
        assert choice(completion="<answer>B</answer>", answer=gold, options=options) is None


def test_choice_from_the_last_lone_letter_or_the_last_box() -> None:
    last, boxed = load_reward("choice", extract="last_letter"), load_reward("choice", extract="boxed")
    text = r"A? No: \boxed{C}, so I say B. It isn't Z's"
    assert last(completion=text, answer="B", options=CITIES) == 1  # I and Z are no options
    assert last(completion=text, answer="I") == 0 and last(completion="none", answer="A") == 0
    assert boxed(completion=text, answer="C") == 1 and boxed(completion="<answer>C</answer>", answer="C") == 0


def test_fuzzy_is_twice_the_matching_characters_over_all() -> None:
    """abcd and bcde share bcd: 2 * 3 / 8."""
    fuzzy = load_reward("fuzzy")
    assert fuzzy(completion="<answer>abcd</answer>", answer="bcde") == 0.75
    assert fuzzy(completion="<answer>\nThe  Capital</answer>", answer="the capital") == 1
    assert fuzzy(completion="<answer>xyz</answer>", answer="abc") == 0 and fuzzy(completion="abc", answer="abc") == 0
    assert fuzzy(completion="<answer>x</answer>", answer=" ") is None and fuzzy(completion="<answer>x</answer>", answer="x" * 2001) is None


def test_fuzzy_with_a_threshold_is_one_or_zero() -> None:
    scores = [load_reward("fuzzy", threshold=t)(completion="<answer>abcd</answer>", answer="bcde") for t in (0.7, 0.75, 0.76)]
    assert scores == [1, 1, 0]
    with pytest.raises(RewardError, match="threshold is 1.5; it must lie between 0 and 1"):
        load_reward("fuzzy", threshold=1.5)


def test_fuzzy_does_not_compare_what_would_take_long(samples) -> None:
    with RewardRuntime([RewardSpec("fuzzy")]) as runtime:
        (scored,) = runtime.score(samples(f"<answer>{'ab' * 1001}</answer>", answer="ab"))
    assert (scored.reward, scored.notes) == (0, {"fuzzy": "undecidable"})


@pytest.mark.parametrize("task", ["countdown", "chain_sum", "propositional_logic"])
def test_reasoning_gym_asks_the_tasks_own_verifier(task: str) -> None:
    import reasoning_gym

    verify, own = load_reward("reasoning_gym"), reasoning_gym.get_score_answer_fn(task)
    for item in reasoning_gym.create_dataset(task, size=3, seed=7):
        for given in (str(item["answer"]), "1", "((", "1/0", "9" * 50):
            assert verify(completion=f"<think>x</think><answer> {given} </answer>", **item) == own(answer=given, entry=item)
        assert verify(completion=str(item["answer"]), **item) == 0  # no answer block


def test_reasoning_gym_calls_an_answer_undecidable_at_which_only_the_verifier_fails(samples) -> None:
    """Its verifier of prime factorisations calls int() on whatever it is given."""
    row = {"question": "", "answer": "2 × 3", "metadata": {"source_dataset": "prime_factorization", "number": 6, "factors": [2, 3]}}
    with RewardRuntime([RewardSpec("reasoning_gym")]) as runtime:
        right, odd = runtime.score(samples("<answer>3 × 2</answer>", "<answer>banana</answer>", **row))
    assert (right.reward, odd.reward, odd.notes) == (1, 0, {"reasoning_gym": "undecidable"})


def test_reasoning_gym_takes_another_right_answer() -> None:
    """The numbers in another order: a text comparison would call it wrong."""
    row = {"question": "", "answer": "3 + 4 - 5", "metadata": {"source_dataset": "countdown", "numbers": [3, 4, 5], "target": 2}}
    verify, exact = load_reward("reasoning_gym"), load_reward("exact")
    assert verify(completion="<answer>4 - 5 + 3</answer>", **row) == 1 and exact(completion="<answer>4 - 5 + 3</answer>", **row) == 0
    assert verify(completion="<answer>4 + 5 + 3</answer>", **row) < 0.1


def test_reasoning_gym_needs_rows_of_a_task(samples) -> None:
    with pytest.raises(RewardError, match="names the reasoning-gym task 'chess' as its source_dataset, which is not one"):
        load_reward("reasoning_gym")(completion="<answer>1</answer>", answer="1", metadata={"source_dataset": "chess"})
    with RewardRuntime([RewardSpec("reasoning_gym")]) as runtime:
        broken = {"source_dataset": "word_sorting"}  # without the words not even the gold answer can be verified
        with pytest.raises(RewardError, match=r"(?s)failed on all 1 samples.*KeyError"):
            runtime.score(samples("<answer>a</answer>", answer="a", metadata=broken))


def test_shipped_rewards_that_must_be_right_say_how_they_are_tried() -> None:
    found = {
        name: load_reward(name).options for name in ("math", "code", "choice", "reasoning_gym", "exact", "fuzzy", "format", "repetition")
    }
    assert [name for name, options in found.items() if options.required] == ["math", "code", "choice", "reasoning_gym"]
    golds = {name: options.gold for name, options in found.items() if options.gold}
    assert golds == {"code": "solution"} | dict.fromkeys(("math", "choice", "reasoning_gym", "exact", "fuzzy"), "answer")
