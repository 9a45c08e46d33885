"""From a reference to a recipe: where it is looked for, what it extends, what the command line changes, what comes out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import run

import pytest

from grpo.config import load as loading
from grpo.config.load import LoadedRecipe, load_recipe, resolved_yaml
from grpo.errors import RecipeError
from grpo.util.text import render_problems

Load = Callable[..., LoadedRecipe]
Problems = Callable[..., list[str]]
Write = Callable[..., str]


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of shipped recipes with one recipe in it, r1_tiny."""
    folder = tmp_path / "elsewhere" / "recipes"
    folder.mkdir(parents=True)
    (folder / "r1_tiny.yaml").write_text(
        "name: r1\nmodel: org/base\nstages: [{name: cold, kind: sft, data: sums}]\ndata: {sums: {general: true}}"
    )
    monkeypatch.setattr("grpo.util.shipped_recipes.__file__", str(tmp_path / "elsewhere" / "grpo" / "util" / "shipped_recipes.py"))
    return folder


def test_a_recipe_knows_its_folder_and_the_line_of_every_value(load: Load, tmp_path: Path) -> None:
    loaded = load()
    assert loaded.path == tmp_path / "r.yaml" and loaded.base == tmp_path
    assert loaded.recipe.stages[1].name == "reason"
    assert loaded.source_of("stages", 1, "steps") == "r.yaml:14"
    assert loaded.source_of("stages", 1, "learning_rate") == "r.yaml:9"  # a default: the stage it belongs to


def test_the_resolved_recipe_has_every_default_and_loads_to_an_equal_one(load: Load, write: Write) -> None:
    loaded = load()
    text = resolved_yaml(loaded)
    assert loaded.resolved["stages"][1]["clip_low"] is None and "max_grad_norm: 1.0" in text and "from: cold" in text
    assert load_recipe(write("again.yaml", text)).recipe == loaded.recipe


def test_traps_of_yaml_survive_the_way_through_the_resolved_recipe(load: Load, write: Write) -> None:
    loaded = load(
        """\
        name: "1e-6"
        description: "no"
        model: {path: "010"}
        data: {sums: {general: true, question: "a: b\\n# {prompt}"}}
        stages:
          - {name: cold, kind: sft, data: sums, learning_rate: 1e-6}
          - {name: harvest, kind: reject, prompts: sums, rewards: [{use: math, limit: 1e-7, word: "on"}], keep: {language: null}}
        """
    )
    assert load_recipe(write("again.yaml", resolved_yaml(loaded)), check_inputs=False).recipe == loaded.recipe
    harvest = loaded.recipe.stages[1]
    assert harvest.keep.language is None and harvest.rewards[0].settings == {"limit": 1e-7, "word": "on"}


def test_a_shipped_recipe_is_found_by_its_name_from_anywhere(shipped: Path, write: Write) -> None:
    assert load_recipe("r1_tiny").path == shipped / "r1_tiny.yaml"


def test_in_a_wheel_recipes_are_package_data(shipped: Path) -> None:
    inside = shipped.parent / "grpo" / "_recipes"
    inside.mkdir(parents=True)
    (inside / "other.yaml").write_text("")
    assert loading.shipped_recipes() == {"other": inside / "other.yaml"}


def test_an_unknown_reference_says_where_it_was_looked_for_and_what_there_is(shipped: Path, write: Write, tmp_path: Path) -> None:
    write("folder/x")
    with pytest.raises(RecipeError) as caught:
        load_recipe("r1_tny")
    there = tmp_path / "r1_tny"
    expected = f"recipe 'r1_tny': {there} does not exist, and shipped recipes are [r1_tiny]; did you mean 'r1_tiny'?"
    assert caught.value.problems == [expected]
    with pytest.raises(RecipeError, match="did you mean 'r1_tiny'"):
        load_recipe("recipes/r1_tiny.yml")
    with pytest.raises(RecipeError, match="is a folder, and shipped"):
        load_recipe("folder")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "r.yaml:1: the file is empty; a recipe has at least name, model and stages"),
        (b"# nothing\n", "r.yaml:1: the file is empty; a recipe has at least name, model and stages"),
        (b"\n- a\n", "r.yaml:2: a recipe is a mapping of keys (name: ..., model: ..., stages: ...), found a list of 1"),
        (b"name: \xe4\nx: y\n", "r.yaml:1: not UTF-8 text; save it as UTF-8"),
    ],
)
def test_a_file_that_is_no_recipe_is_one_line(content: bytes, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_recipe("r.yaml")
    assert caught.value.problems == [problem]


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(load: Load, write: Write, tmp_path: Path) -> None:
    expected = load().recipe
    text = (tmp_path / "r.yaml").read_text()
    (tmp_path / "w.yaml").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    loaded = load_recipe("w.yaml")
    assert loaded.recipe == expected and loaded.source_of("stages", 1, "steps") == "w.yaml:14"


# --- extends ----------------------------------------------------------------------------------------


def test_mappings_merge_deeply_and_lists_are_replaced(write: Write, load: Load) -> None:
    write("base.yaml")
    loaded = load(
        """\
        extends: base.yaml
        seed: 7
        data: {sums: {rows: 9}}
        stages:
          - {name: reason, rewards: [{use: format}]}
        """
    )
    recipe = loaded.recipe
    assert (recipe.name, recipe.seed) == ("sound", 7)
    assert (recipe.data["sums"].general, recipe.data["sums"].rows) == (True, 9)
    assert [use.use for use in recipe.stages[1].rewards] == ["format"] and recipe.stages[1].steps == 12
    assert loaded.source_of("stages", 1, "rewards") == "r.yaml:5" and loaded.source_of("stages", 1, "steps") == "base.yaml:14"


def test_stages_merge_by_name_in_the_bases_order_and_new_ones_come_last(write: Write, load: Load) -> None:
    write("base.yaml")
    recipe = load("extends: base.yaml\nstages: [{name: last, kind: eval, evaluation: {prompts: sums}}, {name: reason, steps: 3}]").recipe
    assert [stage.name for stage in recipe.stages] == ["cold", "reason", "harvest", "last"]
    assert recipe.stages[1].steps == 3


def test_null_takes_away_a_key_a_stage_and_a_source(write: Write, load: Load) -> None:
    write(
        "base.yaml",
        "extends: sound.yaml\nseed: 5\nstages: [{name: harvest, temperature: 0.7, keep: {language: de}}]\ndata: {more: {general: true}}",
    )
    write("sound.yaml")
    recipe = load(
        """\
        extends: base.yaml
        seed: null
        data: {more: null}
        stages:
          - {name: cold, kind: null}
          - {name: reason, from: null}
          - {name: harvest, temperature: null, keep: {language: null}}
        """
    ).recipe
    assert [stage.name for stage in recipe.stages] == ["reason", "harvest"] and list(recipe.data) == ["sums"]
    assert (recipe.seed, recipe.stages[0].from_, recipe.stages[1].temperature) == (0, "base", 1.0)
    assert recipe.stages[1].keep.language is None  # null means something here: the filter is off


def test_removing_a_stage_that_is_not_there_is_a_problem(write: Write, problems: Problems) -> None:
    write("base.yaml")
    (problem,) = problems("extends: base.yaml\nstages:\n- {name: colt, kind: null}\n")
    assert (
        problem
        == "r.yaml:3: stages.colt.kind: kind: null removes a stage of the recipe that this one extends, and there is none of this name"
    )


def test_another_kind_of_stage_model_or_source_replaces_the_whole_entry(write: Write, load: Load, sound: str) -> None:
    write("base.yaml", sound.replace("org/base", "{path: org/base}"))
    write("rows.jsonl", '{"prompt": "a", "completion": "b", "answer": "b"}\n')
    recipe = load(
        """\
        extends: base.yaml
        model: {make: tiny_llama, problems: sums}
        data: {sums: {jsonl: rows.jsonl}}
        stages: [{name: harvest, kind: eval, evaluation: {prompts: sums}}]
        """
    ).recipe
    assert recipe.model.make == "tiny_llama" and recipe.data["sums"].rows is None and recipe.stages[2].kind == "eval"


def test_a_relative_path_belongs_to_the_file_that_writes_it(write: Write, problems: Problems, load: Load) -> None:
    write("shared/base.yaml")
    write("shared/rows.jsonl", '{"prompt": "a", "completion": "b", "answer": "b"}\n')
    write("shared/mine.py", "def good(completion): return 1.0\n")
    write(
        "shared/middle.yaml",
        "extends: base.yaml\ndata: {sums: {jsonl: rows.jsonl}}\nstages: [{name: reason, rewards: [{use: './mine.py:good'}]}]",
    )
    text = "extends: shared/middle.yaml\n"
    assert problems(text) == []
    recipe = load(text).recipe
    assert recipe.data["sums"].jsonl == "./shared/rows.jsonl" and recipe.stages[1].rewards[0].use == "./shared/mine.py:good"


def test_a_shipped_recipe_can_be_extended_by_name(shipped: Path, write: Write, load: Load) -> None:
    assert load("extends: r1_tiny\nseed: 3").recipe.name == "r1"


def test_a_circle_of_extends_is_an_error_at_the_line_that_closes_it(write: Write, problems: Problems) -> None:
    write("a.yaml", "seed: 1\nextends: r.yaml\n")
    assert problems("extends: a.yaml\n") == ["a.yaml:2: circular extends: r.yaml -> a.yaml -> r.yaml"]


def test_problems_of_each_file_keep_their_file_and_line(write: Write, problems: Problems) -> None:
    write(
        "base.yaml",
        "name: x\nmodel: org/name\nsede: 3\ndata: {s: {general: true}}\nstages:\n- name: cold\n  kind: sft\n  data: s\n  epochs: 2.5\n",
    )
    assert problems("extends: base.yaml\nstages:\n- name: cold\n  max_tokns: 3\n") == [
        "r.yaml:4: stages.cold.max_tokns: unknown key 'max_tokns'; did you mean 'max_tokens'?",
        "base.yaml:3: sede: unknown key 'sede'; did you mean 'seed'?",
        "base.yaml:9: stages.cold.epochs: expected a whole number above 0, found 2.5",
    ]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("nope.yaml", "r.yaml:1: extends: recipe 'nope.yaml': "),
        ("[a]", "r.yaml:1: extends: expected a file or the name of a shipped recipe"),
    ],
)
def test_extending_nothing_is_one_problem(value: str, words: str, problems: Problems) -> None:
    (problem,) = problems(f"extends: {value}\n")
    assert problem.startswith(words)


# --- overrides --------------------------------------------------------------------------------------


def test_overrides_name_stages_and_read_values_as_yaml(load: Load, sound: str) -> None:
    recipe = load(
        sound.replace("org/base", "{make: tiny_qwen2, problems: sums}"),
        "stages.reason.steps=3",
        "stages.reason.learning_rate=3e-5",
        "stages.reason.rewards.0.weight=2",
        "stages.2.prompts=[sums]",
        "rollout.workers=2",
        "model.pretrain_updates=10",
        "data.more={general: true}",
        "evaluation={prompts: more}",
        "description=a=b",
        "stages.cold=null",
        "stages.reason.from=base",
    ).recipe
    reason, harvest = recipe.stages
    assert (reason.steps, reason.learning_rate, reason.rewards[0].weight, harvest.prompts) == (3, 3e-5, 2.0, ["sums"])
    assert (recipe.rollout.workers, recipe.model.pretrain_updates, recipe.evaluation.prompts, recipe.description) == (2, 10, "more", "a=b")


@pytest.mark.parametrize("key", ["jsonl", "json", "csv", "parquet", "folder"])
def test_every_kind_of_file_belongs_to_the_file_that_names_it(key: str, write: Write, sound: str) -> None:
    write("shared/base.yaml", sound.replace("{general: true, rows: 20}", f"{{{key}: rows, measured: items.jsonl}}"))
    source = load_recipe(write("r.yaml", "extends: shared/base.yaml\n"), check_inputs=False).recipe.data["sums"]
    assert (source.given, source.measured) == ({key: "./shared/rows"}, "./shared/items.jsonl")


def test_a_relative_path_in_an_override_belongs_to_the_current_folder(write: Write, tmp_path: Path) -> None:
    write("deep/r.yaml")
    write("rows.jsonl", '{"prompt": "a", "completion": "b", "answer": "b"}\n')
    recipe = load_recipe("deep/r.yaml", ["data.sums={jsonl: rows.jsonl}"]).recipe
    assert recipe.data["sums"].jsonl == "../rows.jsonl"


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("stages.reson.steps=12", "no stage 'reson'; stages are [cold, reason, harvest]; did you mean 'reason'?"),
        ("stages.reason.clip_hihg=12", "unknown key 'clip_hihg'; did you mean 'clip_high'?"),
        ("stages.reason.steps=twelve", "expected a whole number above 0, found 'twelve'"),
        ("rolout.workers=2", "unknown key 'rolout'; did you mean 'rollout'?"),
        ("rollout.workres=2", "unknown key 'workres'; did you mean 'workers'?"),
        ("data.smus.rows=2", "no data source 'smus'; sources are [sums]; did you mean 'sums'?"),
        ("stages.reason.rewards.1.weight=2", "no item '1': stages.reason.rewards has 1, counted from 0"),
        ("name.x=2", "name is 'sound', which has no key 'x'"),
        ("steps", "expected key=value, such as stages.reason.steps=12"),
        ("stages..steps=1", "a key is empty; write key.key=value, such as stages.reason.steps=12"),
        (
            "name=!!python/name:os.system x",
            "YAML tag 'tag:yaml.org,2002:python/name:os.system' is refused: a recipe is plain data; remove the tag; ",
        ),
        ("stages.reason.from=harvest", "stage 'reason' starts from 'harvest', which comes after it"),
    ],
)
def test_a_wrong_override_is_one_line_that_quotes_it(override: str, problem: str, problems: Problems, sound: str) -> None:
    (line,) = problems(sound, override)
    assert line.startswith(f"command line: {override}: {problem}")


def test_an_override_does_not_move_what_stands_around_it(problems: Problems, sound: str) -> None:
    (line,) = problems(sound.replace("    steps: 12\n", ""), "stages.reason.seed=3")
    assert line.startswith("r.yaml:9: stages.reason.steps: key 'steps' is missing")


# --- as a whole -------------------------------------------------------------------------------------


def test_problems_are_rendered_below_a_line_that_counts_them() -> None:
    assert (
        render_problems(["r.yaml:3: a: b", "r.yaml:4: c: \x1b[31m"])
        == "2 problems in r.yaml; nothing was loaded:\n  r.yaml:3: a: b\n  r.yaml:4: c: \\x1b[31m"
    )
    assert render_problems(["recipe 'x': no"], "x").startswith("1 problem in x; nothing was loaded:")


def test_reading_a_recipe_loads_nothing_heavy(write: Write) -> None:
    write("r.yaml")
    code = (
        "import sys; from grpo.config.load import load_recipe; load_recipe('r.yaml'); "
        "print([name for name in ('torch', 'ray', 'vllm', 'transformers', 'datasets') if name in sys.modules])"
    )
    root = str(Path(__file__).parents[2])
    done = run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": root, "PATH": ""}, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_reading_names_of_shipped_recipes_does_not_wait_for_pydantic() -> None:
    """Errors and their rendering are on the path of every command, --help included."""
    done = run(
        [sys.executable, "-c", "import sys, grpo.errors, grpo.util.text; print('pydantic' in sys.modules)"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": ""},
        check=False,
    )
    assert done.stdout.strip() == "False"


def test_an_override_that_the_shell_took_apart_says_to_quote_it(problems: Callable[..., list[str]], sound: str) -> None:
    torn = problems(sound, "stages.reason.rewards=[{use:", "math}]")
    assert len(torn) == 2 and all("put all of it in single quotes" in line for line in torn)
