"""What each filter keeps out, and under which reason; held-out prompts most of all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grpo.config import DataSource, Filters, Recipe, Tags
from grpo.data.difficulty import measured_pass_rates
from grpo.data.held_out import SharedWords, held_out_sources, prompt_key
from grpo.data.near_duplicates import NearDuplicates
from grpo.data.row_filters import Sieve
from grpo.data.sources import Loaded, Sources
from grpo.errors import DataError


def sifted(rows: list[Any], held_out: tuple[str, ...] = (), shared: SharedWords | None = None, **filters: Any) -> tuple[list[Any], dict]:
    """The prompts (or rows) that pass, and the counts of the others; lengths are counted in characters."""
    sieve = Sieve(Filters(**filters), {prompt_key(prompt) for prompt in held_out}, shared, len)
    as_rows = [row if isinstance(row, dict) else {"prompt": row} for row in rows]
    return [row for row, given in zip(rows, as_rows, strict=True) if sieve.passes(given)], dict(sieve.dropped)


def load(base: Path, name: str, held_out: tuple[str, ...] = (), **sources: dict[str, Any]) -> Loaded:
    for key, rows in sources.items():
        if isinstance(rows, list):
            (base / f"{key}.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in rows))
            sources[key] = {"jsonl": f"{key}.jsonl"}
    return Sources({key: DataSource(**value) for key, value in sources.items()}, base, Tags(), held_out).load(name)


# ---------------------------------------------------------------------------------------------------------------------------- held out


@pytest.mark.parametrize("written", ["What is 3 + 4?", "what is  3 + 4?\n", "What\u00a0is ３ + 4?"])
def test_a_held_out_question_is_found_however_it_is_typed(written: str) -> None:
    assert sifted([written, "What is 3 - 4?"], held_out=("What is 3 + 4?",)) == (["What is 3 - 4?"], {"held_out": 1})


def test_held_out_prompts_are_kept_out_of_every_other_source_unasked(tmp_path: Path) -> None:
    sources = {"train": ["a", "B", "c"], "more": ["b", "d"], "heldout": ["b", "x"]}
    assert load(tmp_path, "train", ("heldout",), **sources) == Loaded([{"prompt": "a"}, {"prompt": "c"}], {"held_out": 1})
    assert load(tmp_path, "more", ("heldout",), **sources) == Loaded([{"prompt": "d"}], {"held_out": 1})
    assert load(tmp_path, "heldout", ("heldout",), **sources).rows == [{"prompt": "b"}, {"prompt": "x"}]


def test_a_held_out_set_that_gives_way_itself_keeps_the_other_whole(tmp_path: Path) -> None:
    (tmp_path / "h.jsonl").write_text('{"prompt": "b"}\n{"prompt": "x"}\n')
    sources: dict[str, Any] = {"train": ["a", "b"], "heldout": {"jsonl": "h.jsonl", "disjoint_from": ["train"]}}
    assert load(tmp_path, "train", ("heldout",), **sources) == Loaded([{"prompt": "a"}, {"prompt": "b"}], {})
    assert load(tmp_path, "heldout", ("heldout",), **sources) == Loaded([{"prompt": "x"}], {"held_out": 1})


def test_a_generated_source_has_its_rows_beside_a_held_out_set_of_the_same_task(tmp_path: Path) -> None:
    # 200 different problems in all, 60 of them held out
    task = {"reasoning_gym": "chain_sum", "settings": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}}
    sources = {"train": {**task, "rows": 100, "seed": 1}, "heldout": {**task, "rows": 60, "seed": 9}}
    train, heldout = (load(tmp_path, name, ("heldout",), **sources) for name in ("train", "heldout"))
    assert len(train.rows) == 100 and train.dropped["held_out"] > 0
    assert not {row["prompt"] for row in train.rows} & {row["prompt"] for row in heldout.rows}


def test_prompts_that_were_asked_to_know_how_hard_they_are_are_not_held_out() -> None:
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "model": {"path": "."},
            "data": {"all": {"general": True}, "measured": {"general": True, "measured_in": "probe"}},
            "stages": [
                {"name": "probe", "kind": "eval", "evaluation": {"prompts": "all"}},
                {"name": "tune", "kind": "sft", "data": "measured"},
            ],
        }
    )
    assert held_out_sources(recipe) == []


def test_held_out_is_what_evaluations_ask_and_nothing_trains_on() -> None:
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "model": {"make": "tiny_qwen2", "problems": "textbook"},
            "data": {name: {"general": True} for name in ("textbook", "train", "mixed", "heldout", "other")},
            "evaluation": {"prompts": "heldout"},
            "stages": [
                {"name": "probe", "kind": "eval", "evaluation": {"prompts": "train"}},  # how hard are the training prompts?
                {"name": "book", "kind": "eval", "evaluation": {"prompts": "textbook"}},
                {"name": "mixture", "kind": "eval", "evaluation": {"prompts": "mixed"}},
                {"name": "second", "kind": "eval", "evaluation": {"prompts": "other"}},
                {"name": "tune", "kind": "sft", "data": [{"use": "train", "weight": 1}]},
                {"name": "harvest", "kind": "reject", "prompts": "train", "rewards": [{"use": "math"}], "mix": [{"use": "mixed"}]},
            ],
        }
    )
    assert held_out_sources(recipe) == ["heldout", "other"]


# ---------------------------------------------------------------------------------------------------------------------------- filters


def test_lengths_are_counted_as_the_model_receives_a_prompt() -> None:
    kept = sifted(["a" * n for n in (1, 2, 5, 6, 50)], min_prompt_tokens=2, max_prompt_tokens=5)
    assert kept == (["aa", "aaaaa"], {"too_short": 1, "too_long": 2})


def test_prompts_of_another_language_are_left_out_and_terse_ones_stay() -> None:
    english, chinese, terse = "How many apples does the farmer have left in the end?", "这个农民最后还剩下多少个苹果？", "3 + 4 = ?"
    assert sifted([english, chinese, terse], language="en") == ([english, terse], {"other_language": 1})
    assert sifted([english, chinese, terse], language="zh") == ([chinese, terse], {"other_language": 1})
    asked = [[{"role": "system", "content": ""}, {"role": "user", "content": chinese}]]
    assert sifted(asked, language="en") == ([], {"other_language": 1})


def test_pass_rates_are_bounded_on_both_sides() -> None:
    rows = [{"prompt": str(rate), "pass_rate": rate} for rate in (0.0, 0.2, 0.8, 1.0, "0.5", None)]
    kept, dropped = sifted([*rows, {"prompt": "?"}], min_pass_rate=0.2, max_pass_rate=0.8)
    assert [row["pass_rate"] for row in kept] == [0.2, 0.8, "0.5"]
    assert dropped == {"too_hard": 1, "too_easy": 1, "not_measured": 2}
    with pytest.raises(DataError, match="pass_rate is 'often', which is no number"):
        sifted([{"prompt": "a", "pass_rate": "often"}], min_pass_rate=0.2)


def test_the_first_of_equal_prompts_stays() -> None:
    assert sifted(["a b", "A  b", "a c"], duplicates="exact") == (["a b", "a c"], {"duplicate": 1})
    assert sifted(["a b", "A  b"]) == (["a b", "A  b"], {})


def test_a_prompt_that_another_filter_drops_takes_the_place_of_none() -> None:
    rows = [{"prompt": "a", "pass_rate": 0.0}, {"prompt": "a", "pass_rate": 0.5}]
    assert sifted(rows, duplicates="exact", min_pass_rate=0.1) == (rows[1:], {"too_hard": 1})


# --------------------------------------------------------------------------------------------------------------------- near duplicates

FARM = "A farmer has 12 cows and 30 hens. He sells 4 cows and buys 6 hens. How many animals does he have on the farm in the end?"


@pytest.mark.parametrize(
    ("other", "is_near"),
    [
        (FARM.lower().replace("end?", "end ?"), True),
        (FARM.replace("in the end", "now"), True),  # of 33 runs of three words three go and one comes: 30/34
        (FARM.replace("12 cows", "13 cows"), False),  # another number, another problem
        (FARM.replace("12 cows and 30 hens", "30 hens and 12 cows"), False),  # numbers in another order
        ("A farmer has 12 cows and 30 hens. 4 cows are brown and 6 hens are white. How many animals are neither?", False),
    ],
)
def test_near_duplicates_say_the_same_with_the_same_numbers(other: str, is_near: bool) -> None:
    assert sifted([FARM, other], duplicates="near")[1] == ({"near_duplicate": 1} if is_near else {})


def test_signs_are_numbers_business() -> None:
    long = "Work out the value of the following expression step by step and give nothing but the result at the end: 8 {} 2"
    assert sifted([long.format(sign) for sign in "+-*/"], duplicates="near")[1] == {}


def test_chinese_prompts_are_compared_by_characters() -> None:
    text = "小明有十二个苹果他把其中的四个送给了他的朋友请问他现在还剩下多少个苹果呢"
    assert sifted([text, text.replace("呢", "")], duplicates="near") == ([text], {"near_duplicate": 1})


def test_minhash_finds_what_comparing_all_pairs_finds() -> None:
    """300 texts in families of small changes: the same ones go as by the Jaccard index of every pair."""
    import random

    from grpo.data.near_duplicates import TOKEN

    rng = random.Random(0)
    vocabulary = [f"w{letter}{other}" for letter in "abcdefghij" for other in "klmnopqrst"]
    texts = []
    for _ in range(60):
        family = rng.choices(vocabulary, k=60)
        for _ in range(5):
            changed = list(family)
            for _ in range(rng.randrange(6)):
                changed[rng.randrange(60)] = rng.choice(vocabulary)
            texts.append(" ".join(changed))

    def runs(text: str) -> set[tuple[str, ...]]:
        tokens = TOKEN.findall(text)
        return set(zip(tokens, tokens[1:], tokens[2:], strict=False))

    kept: list[set[tuple[str, ...]]] = []
    expected = []
    for own in map(runs, texts):
        repeated = any(len(own & one) / len(own | one) >= 0.8 for one in kept)
        expected.append(repeated)
        if not repeated:
            kept.append(own)
    near = NearDuplicates(0.8)
    assert [near.repeats(text) for text in texts] == expected
    assert 60 < sum(expected) < 240


# --------------------------------------------------------------------------------------------------------------------- contamination

TRAINS = (
    "Two trains leave the same station at noon, one to the north at 60 km/h and one to the south at 80 km/h. When are they 350 km apart?"
)


def test_a_prompt_that_quotes_a_held_out_one_is_contaminated() -> None:
    quoting = "Here is a puzzle. " + TRAINS.upper().replace(",", "") + " Explain."
    excerpt = "One goes: " + " ".join(TRAINS.split()[:12]) + " and so on."  # 12 words in a row
    for num_words, found in ((13, [True, False]), (12, [True, True])):
        shared = SharedWords([TRAINS], num_words)
        assert [shared.found_in(prompt) for prompt in (quoting, excerpt)] == found
    assert sifted([quoting, excerpt], shared=SharedWords([TRAINS], 13)) == ([excerpt], {"contaminated": 1})


def test_a_short_held_out_prompt_counts_as_a_whole() -> None:
    shared = SharedWords(["What is 3 + 4?", "?!"], 13)
    assert shared.found_in("Please: what is 3 + 4? Thanks.")
    assert not shared.found_in("What is 3 + 5?")


def test_how_a_set_always_puts_its_questions_is_not_contamination() -> None:
    frame = "Solve the following problem and put your final answer into a box at the very end of it: "
    held_out = [f"{frame} number {'one two three four five six seven eight nine ten eleven twelve'.split()[i]}" for i in range(12)]
    assert not SharedWords(held_out, 13).found_in(f"{frame} something else entirely")
    assert SharedWords(held_out[:10], 13).found_in(f"{frame} something else entirely")


def test_decontamination_is_against_what_a_source_must_not_hold(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"prompt": f"Riddle: {TRAINS}"}) + '\n{"prompt": "a"}\n')
    sources: dict[str, Any] = {"heldout": [TRAINS], "train": {"jsonl": "t.jsonl", "filters": {"decontaminate": True}}}
    assert load(tmp_path, "train", ("heldout",), **sources) == Loaded([{"prompt": "a"}], {"contaminated": 1})


# ------------------------------------------------------------------------------------------------------------------- measured difficulty


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_pass_rates_come_from_an_evaluations_items(tmp_path: Path) -> None:
    def item(question: str, accuracy: float | None) -> dict[str, Any]:
        return {"question": question, "accuracy": accuracy, "lenient": 1.0}

    file = lines(tmp_path / "items.jsonl", item("a", 1.0), item("a", 0.0), item("a", None), item("B", 0.0), item("c", None))
    assert measured_pass_rates(file, None) == {"a": 0.5, "b": 0.0}  # c was never judged, so its difficulty is not known
    assert measured_pass_rates(file, "lenient") == {"a": 1.0, "b": 1.0, "c": 1.0}


def test_pass_rates_come_from_the_samples_of_reject_and_rl_stages(tmp_path: Path) -> None:
    file = lines(tmp_path / "samples.jsonl", *({"prompt": "a", "parts": {"math": right, "format": 1.0}} for right in (1.0, 0.0, 0.0, None)))
    assert measured_pass_rates(file, None) == {"a": pytest.approx(1 / 3)}
    assert measured_pass_rates(file, "format") == {"a": 1.0}
    with pytest.raises(DataError, match=r"samples\.jsonl:1: column 'mth' not found; found \['format', 'math'\]; did you mean 'math'\?"):
        measured_pass_rates(file, "mth")


def test_a_measured_task_has_the_problems_that_were_measured(tmp_path: Path) -> None:
    task = {"reasoning_gym": "chain_sum", "rows": 20, "seed": 3, "disjoint_from": ["heldout"]}
    sources = {"heldout": {**task, "seed": 4, "disjoint_from": []}, "plain": task}
    prompts = [row["prompt"] for row in load(tmp_path, "plain", **sources).rows]
    lines(tmp_path / "items.jsonl", *({"question": prompt, "accuracy": float(i % 2)} for i, prompt in enumerate(prompts)))
    sources["it"] = {**task, "measured": "items.jsonl", "filters": {"min_pass_rate": 0.5}}
    loaded = load(tmp_path, "it", **sources)
    assert [row["prompt"] for row in loaded.rows] == prompts[1::2]
    assert loaded.dropped["too_hard"] == 10


def test_a_measured_source_has_a_column_pass_rate_to_filter_by(tmp_path: Path) -> None:
    lines(tmp_path / "items.jsonl", *({"question": q, "accuracy": right} for q, right in (("a", 1.0), ("b", 0.0), ("b", 1.0))))
    lines(tmp_path / "rows.jsonl", {"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"})
    source = {"jsonl": "rows.jsonl", "measured": "items.jsonl", "filters": {"max_pass_rate": 0.9}}
    assert load(tmp_path, "it", it=source) == Loaded([{"prompt": "b", "pass_rate": 0.5}], {"too_easy": 1, "not_measured": 1})
