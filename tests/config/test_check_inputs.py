"""What a recipe takes from outside itself is looked for before anything heavy is loaded: files, tasks, functions, columns, rewards."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Problems = Callable[..., list[str]]
Write = Callable[..., str]

ROW = '{"prompt": "1 + 1", "completion": "2", "answer": "2"}\n'


def test_a_file_that_is_not_there_is_looked_for_beside_the_recipe(write: Write, problems: Problems, sound: str, tmp_path: object) -> None:
    write("rows.jsonl", ROW)
    assert problems(sound, "data.sums={jsonl: rws.jsonl}") == [
        f"command line: data.sums={{jsonl: rws.jsonl}}: file {tmp_path}/rws.jsonl does not exist; did you mean 'rows.jsonl'?"
    ]
    assert problems(sound, "data.sums={jsonl: rows.jsonl}") == []


def test_a_renamed_column_is_found_by_its_meaning(write: Write, problems: Problems, sound: str) -> None:
    write("rows.jsonl", '{"prompt": "1 + 1", "completion": "2", "solution": "2"}\n')
    lines = problems(sound.replace("{general: true, rows: 20}", "{jsonl: rows.jsonl}"))
    assert lines == [
        f"r.yaml:{line}: stages.{stage}.rewards.0: "
        "reward 'math': column 'answer' not found; found ['completion', 'data_source', 'prompt', 'solution']; did you mean 'solution'?"
        for line, stage in ((13, "reason"), (19, "harvest"))
    ]
    assert problems(sound.replace("{general: true, rows: 20}", "{jsonl: rows.jsonl, columns: {answer: solution}}")) == []


def test_rows_to_imitate_need_a_completion(write: Write, problems: Problems, sound: str) -> None:
    write("rows.jsonl", ROW.replace("completion", "complete"))
    (line,) = problems(sound.replace("{general: true, rows: 20}", "{jsonl: rows.jsonl}"))
    assert line.startswith(
        "r.yaml:8: stages.cold.data: data source 'sums': column 'completion' not found; found ['answer', 'complete', 'prompt'"
    )
    assert line.endswith("did you mean 'complete'?")


def test_columns_and_question_name_columns_that_are_there(write: Write, problems: Problems, sound: str) -> None:
    write("rows.csv", "quest,completion,answer\na,b,c\n")
    source = "{csv: rows.csv, columns: {topic: topc}, question: 'Calculate {expr}.'}"
    lines = problems(sound.replace("{general: true, rows: 20}", source))
    assert lines == [
        "r.yaml:4: data.sums.columns.topic: column 'topc' not found; found ['answer', 'completion', 'quest']",
        "r.yaml:4: data.sums.question: column 'expr' not found; found ['answer', 'completion', 'quest', 'topic']",
    ]
    (line,) = problems(sound.replace("{general: true, rows: 20}", "{csv: rows.csv}"))
    assert "column 'prompt' not found" in line and "question: 'Calculate {...}.' writes it" in line


@pytest.mark.parametrize("pattern", ["{a.__class__}", "{0}", "{}", "{a[0]}", "Calculate {", "}"])
def test_a_question_reaches_for_columns_and_nothing_else(pattern: str, problems: Problems, sound: str) -> None:
    (line,) = problems(sound.replace("rows: 20}", f"question: '{pattern}'}}"))
    assert line.startswith("r.yaml:4: data.sums.question: ")


def test_columns_of_parquet_are_read_from_its_footer(write: Write, problems: Problems, sound: str, tmp_path: object) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"prompt": ["a"], "answer": ["b"]}), f"{tmp_path}/rows.parquet")
    write("r.yaml")
    (line,) = problems(sound.replace("{general: true, rows: 20}", "{parquet: rows.parquet}"))
    assert "column 'completion' not found; found ['answer', 'prompt']" in line


@pytest.mark.parametrize("content", ["", "not json\n", "[1]\n", "\x00\xff"])
def test_a_file_that_cannot_be_peeked_into_is_left_to_the_loader(content: str, write: Write, problems: Problems, sound: str) -> None:
    write("rows.jsonl", content)
    assert problems(sound.replace("{general: true, rows: 20}", "{jsonl: rows.jsonl}")) == []


def test_a_task_of_reasoning_gym_is_checked_with_its_settings(problems: Problems, sound: str) -> None:
    def source(text: str) -> list[str]:
        return problems(
            sound.replace("{general: true, rows: 20}", text).replace(
                "kind: sft\n    data: sums", "kind: eval\n    evaluation: {prompts: sums}"
            )
        )

    assert "reasoning_gym has no task 'chain_smu'; did you mean 'chain_sum'?" in source("{reasoning_gym: chain_smu}")[0]
    assert (
        "task 'chain_sum' has no setting 'min_term'; did you mean 'min_terms'?"
        in source("{reasoning_gym: chain_sum, settings: {min_term: 2}}")[0]
    )
    assert (
        "task 'chain_sum' refuses these settings: max_terms must be >= min_terms"
        in source("{reasoning_gym: chain_sum, settings: {min_terms: 5, max_terms: 2}}")[0]
    )
    assert "column 'expresion' not found" in source("{reasoning_gym: chain_sum, question: '{expresion}'}")[0]


def test_a_misspelt_reward_setting_or_weight_is_a_problem(problems: Problems, sound: str) -> None:
    (line,) = problems(sound, "stages.reason.rewards=[{use: math, wieght: 2}]")
    assert "reward 'math' has no setting 'wieght'" in line and line.endswith("did you mean 'weight'?")
    (line,) = problems(sound, "stages.reason.rewards=[{use: math, on_eror: stop}]")
    assert line.endswith("did you mean 'on_error'?")
    (line,) = problems(sound, "stages.reason.rewards=[{use: mth}]")
    assert "unknown reward 'mth'; did you mean 'math'?" in line


def test_the_evaluations_rewards_are_checked_against_its_prompts(write: Write, problems: Problems, sound: str) -> None:
    write("held.jsonl", '{"prompt": "1 + 1"}\n')
    lines = problems(sound.replace("data:\n  sums", "data:\n  held: {jsonl: held.jsonl}\n  sums") + "evaluation: {prompts: held}\n")
    assert lines and all("evaluation." in line and "column 'answer' not found; found ['data_source', 'prompt']" in line for line in lines)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stages.reason.algorithm=gpro", "unknown algorithm 'gpro'; algorithms are [grpo, "),
        ("stages.reason.algorithm=./mine.py:GRPO", "mine.py does not exist"),
        ("stages.reason.algorithm=./code.py:MIEN", "it has [os, MINE, make]; did you mean 'MINE'?"),
        ("stages.reason.algorithm=./broken.py:X", "broken.py is not Python: "),
        ("stages.reason.algorithm=code.py", "expected ./file.py:name, found 'code.py'"),
        (
            "template=r1zero",
            "unknown template 'r1zero'; templates are [r1_zero, chat, plain] or ./file.jinja; did you mean 'r1_zero'?",
        ),
        ("template=./my.jinja", "my.jinja does not exist"),
        ("model=./nowhere", "model './nowhere': there is no folder "),
        ("data.sums={generator: './code.py:mkae'}", "did you mean 'make'?"),
    ],
)
def test_what_a_reference_leads_to_is_there(override: str, words: str, write: Write, problems: Problems, sound: str) -> None:
    write("code.py", "import os\nMINE = 1\ndef make(): raise SystemExit('nothing here is run')\n")
    write("broken.py", "def (:\n")
    (line,) = problems(sound, override)
    assert words in line


def test_a_users_own_algorithm_and_a_hub_id_pass(write: Write, problems: Problems, sound: str) -> None:
    write("code.py", "if True:\n    MINE: int = 1\n")
    assert problems(sound, "stages.reason.algorithm=./code.py:MINE", "model=Qwen/Qwen3-0.6B") == []


def test_a_made_models_problems_are_sums_of_the_recipe(problems: Problems, sound: str) -> None:
    model = "{make: tiny_qwen2, problems: %s}"
    (line,) = problems(sound.replace("org/base", model % "sums"))
    assert "data source 'sums': column 'expression' not found; found ['answer', 'completion', 'prompt']" in line
    (line,) = problems(sound.replace("org/base", model % "sms"))
    assert (
        "a tiny model's problems must be a data source, found 'sms', which does not exist; sources are [sums]; did you mean 'sums'?" in line
    )


def test_a_tracker_that_is_not_there_is_reported_with_the_command_that_brings_it(
    write: Write, problems: Problems, sound: str, tmp_path: Path
) -> None:
    write("mine.py", "class Mine: pass\n")
    assert problems(sound, "trackers=[wandbb, ./mine.py:Yours, ./mine.py:Mine]") == [
        "command line: trackers=[wandbb, ./mine.py:Yours, ./mine.py:Mine]: unknown tracker 'wandbb'; "
        "trackers are [tensorboard, wandb, mlflow, trackio] or ./file.py:Class; did you mean 'wandb'?",
        f"command line: trackers=[wandbb, ./mine.py:Yours, ./mine.py:Mine]: there is no 'Yours' in {tmp_path}/mine.py; it has [Mine]",
    ]


def test_a_way_for_weights_that_is_not_installed_is_reported_before_the_run(
    problems: Problems, sound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grpo.config.check_inputs.find_spec", lambda name: None)
    assert problems(sound, "rollout.transport=nixl") == [
        "command line: rollout.transport=nixl: nixl is not installed; run pip install nixl, or delete transport, and weights go through host memory"
    ]


def test_a_folder_of_a_trackers_name_is_not_the_tracker(
    problems: Problems, sound: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """wandb leaves a folder ./wandb behind, which Python would import as an empty package."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr("sys.path", [str(tmp_path)])  # and nothing else to find it in
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    (line,) = problems(sound, "trackers=[wandb]")
    assert "tracker 'wandb' is not installed; run pip install wandb" in line


def test_a_reward_may_ask_where_its_row_came_from(write: Write, problems: Problems, sound: str) -> None:
    write("mine.py", "def by_source(completion, data_source): return 1.0\ndef by_sauce(completion, data_sauce): return 1.0\n")
    assert problems(sound, "stages.reason.rewards=[{use: math}, {use: ./mine.py:by_source}]") == []
    (line,) = problems(sound, "stages.reason.rewards=[{use: math}, {use: ./mine.py:by_sauce}]")
    assert "column 'data_sauce' not found" in line and "did you mean 'data_source'?" in line


def test_a_field_of_a_column_is_a_column_and_a_wrong_one_is_answered_with_it(write: Write, problems: Problems, sound: str) -> None:
    row = {"prompt": "1 + 1", "completion": "2", "reward_model": {"ground_truth": "2", "style": "rule"}}
    write("rows.jsonl", json.dumps(row) + "\n")
    source = "data.sums={{jsonl: rows.jsonl, columns: {{answer: {}}}}}"
    assert problems(sound, source.format("reward_model.ground_truth")) == []
    (line,) = problems(sound, source.format("ground_truth"))
    assert line.endswith("did you mean 'reward_model.ground_truth'?")


def test_rows_to_imitate_may_be_conversations(write: Write, problems: Problems, sound: str) -> None:
    turns = [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "2"}]
    write("rows.jsonl", json.dumps({"messages": turns, "answer": "2"}) + "\n")
    assert problems(sound, "data.sums={jsonl: rows.jsonl}") == []


def test_options_of_a_template_are_looked_up_in_its_source(write: Write, problems: Problems, sound: str, tmp_path: Path) -> None:
    write("t.jinja", "{{ messages[0].content }}{{ style }}")
    assert problems(sound, "template=./t.jinja", "template_options={style: 2}") == []
    (line,) = problems(sound, "template=./t.jinja", "template_options={stile: 2}")
    assert "the template never asks for 'stile'; it asks for [style]; did you mean 'style'?" in line
    (line,) = problems(sound, "template_options={style: 2}")
    assert "template 'r1_zero' has no options; write template: chat or ./file.jinja, or delete template_options" in line
    folder = write("base/tokenizer_config.json", json.dumps({"chat_template": "{{ messages }}{{ thinking }}"}))
    write("base/config.json", "{}")
    write("base/tokenizer.json", "{}")
    chat = ("template=chat", f"model.path={(tmp_path / folder).parent}")
    assert problems(sound.replace("model: org/base", "model: {path: ./base}"), *chat, "template_options={thinking: true}") == []
    (line,) = problems(sound.replace("model: org/base", "model: {path: ./base}"), *chat, "template_options={think: true}")
    assert "never asks for 'think'; it asks for [thinking]" in line
