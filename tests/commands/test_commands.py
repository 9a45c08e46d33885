"""Can a person, a shell and a script use every command? Examples, exit codes, one object on stdout, completion."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from grpo.cli import app
from grpo.errors import DataError, RecipeError, TrainingError
from grpo.run.interruption import Interrupted
from grpo.run.progress import Progress

ROOT = Path(__file__).resolve().parents[2]


def commands(group: Any, path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Every command by the words that call it, those of groups too."""
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        found |= commands(command, (*path, name)) if hasattr(command, "commands") else {" ".join((*path, name)): command}
    return found


COMMANDS = commands(typer.main.get_command(app))


def example(command: Any) -> str:
    """The command line behind "Example:" in a command's help."""
    (line,) = re.findall(r"Example: (grpo .+)", " ".join((command.help or "").split()))
    return str(line)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_an_example_that_it_understands(name: str) -> None:
    words = shlex.split(example(COMMANDS[name]).split(" > ")[0])[1:]
    assert " ".join(words).startswith(name)
    COMMANDS[name].make_context(name, words[len(name.split()) :])  # raises where an option or an argument is not its own


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_does(name: str) -> None:
    silent = [parameter.name for parameter in COMMANDS[name].params if not getattr(parameter, "help", None) and parameter.name != "help"]
    assert silent == []


def grpo(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "import sys; sys.argv[0] = 'grpo'; from grpo.cli import main; main()", *arguments]
    return subprocess.run(command, env={**os.environ, **env}, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_help_says_what_exit_codes_mean() -> None:
    text = " ".join(grpo("--help").stdout.split())
    assert "Exit codes: 0 done; 1 failed; 2 bad input" in text and "130 and 143 interrupted" in text


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (TrainingError("no"), 1),
        (RecipeError(["r.yaml:1: one", "r.yaml:2: two"]), 2),
        (DataError("rows.jsonl:3: no JSON"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_exit_code_says_how_a_run_ended(
    error: BaseException | None, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_recipe(*_: object) -> dict[str, Any]:
        if error:
            raise error
        return {"status": "complete"}

    monkeypatch.setattr("grpo.pipeline.run.run_recipe", run_recipe)
    with pytest.raises(SystemExit) as end:
        app(["run", "r1_tiny"])
    assert end.value.code == code
    assert "Traceback" not in capsys.readouterr().err


def test_a_mistake_on_the_command_line_is_bad_input() -> None:
    assert grpo("run").returncode == 2
    assert grpo("run", "r1_tiny", "--outt", "x").returncode == 2
    assert grpo("export", "nowhere", "--to", "somewhere").returncode == 2


def test_eval_names_a_file_that_is_not_there_as_it_was_typed(tmp_path: Path) -> None:
    (tmp_path / "problem.jsonl").write_text('{"question": "1 + 1", "answer": "2"}\n')
    missing = grpo("eval", "model", "--data", f"{tmp_path}/problems.jsonl")
    assert missing.returncode == 2
    assert f"--data {tmp_path}/problems.jsonl: there is no such file; did you mean 'problem.jsonl'?" in missing.stderr
    assert "--column 'answer' is not KEY=VALUE" in grpo("eval", "m", "--data", f"{tmp_path}/problem.jsonl", "--column", "answer").stderr


def test_eval_refuses_what_no_engine_samples_before_it_loads_one(tmp_path: Path, tiny_qwen2: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "1 + 1", "answer": "2"}\n')
    ran = grpo("eval", str(tiny_qwen2), "--data", f"{tmp_path}/rows.jsonl", "--top-p", "0")
    assert ran.returncode == 2 and "top_p" in ran.stderr and "found 0.0" in ran.stderr


def test_eval_of_a_run_names_its_model(tmp_path: Path) -> None:
    run, rows = tmp_path / "run", tmp_path / "rows.jsonl"
    rows.write_text('{"question": "1 + 1", "answer": "2"}\n')
    (run / "01-teach" / "model").mkdir(parents=True)
    (run / "01-teach" / "model" / "config.json").write_text("{}")
    stage = {"name": "teach", "kind": "sft", "status": "complete", "from": "base", "output": "01-teach/model", "metrics": {}}
    (run / "summary.json").write_text(json.dumps({"recipe": "x", "status": "complete", "stages": [stage]}))
    for folder, what in ((run, "run"), (run / "01-teach", "stage")):
        ran = grpo("eval", str(folder), "--data", str(rows))
        assert ran.returncode == 2 and f"the folder of a {what}; its model is {run / '01-teach' / 'model'}" in ran.stderr


def test_eval_renames_columns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "1 + 1", "solution": "2"}\n')
    read: list[Any] = []

    def run_recipe(path: str, **_: Any) -> dict[str, Any]:
        read.append(yaml.safe_load(Path(path).read_text()))
        return {"stages": [{"metrics": {}}]}

    monkeypatch.setattr("grpo.pipeline.run.run_recipe", run_recipe)
    with pytest.raises(SystemExit):
        app(["eval", "model", "--data", str(tmp_path / "rows.jsonl"), "--column", "answer=solution"])
    assert read[0]["data"]["problems"]["columns"] == {"answer": "solution"}


def with_progress(*_: object, **__: object) -> dict[str, Any]:
    """What a run does to stdout, and a number that JSON does not have."""
    print("a library's own line")
    with Progress(1) as progress:
        progress.stage(1, "measure", "eval", "from base")
        progress.step(1, 1, {"eval/accuracy": 0.5})
    return {"eval/accuracy": 0.5, "eval/maj": float("nan")}


@pytest.mark.parametrize(
    ("replaced", "arguments"),
    [
        ("grpo.commands.evaluate.evaluate_model", ["eval", "model", "--data", "rows.jsonl", "--json"]),
        ("grpo.pipeline.run.run_recipe", ["run", "r1_tiny", "--json"]),
    ],
)
def test_with_json_stdout_holds_one_object_and_progress_goes_to_stderr(
    replaced: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(replaced, with_progress)
    with pytest.raises(SystemExit) as end:
        app(arguments)
    printed = capsys.readouterr()
    assert end.value.code == 0
    assert json.loads(printed.out) == {"eval/accuracy": 0.5, "eval/maj": None}
    assert "step 1/1" in printed.err and "a library's own line" in printed.err


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (RecipeError(["r.yaml:1: one", "r.yaml:2: two"]), 2, {"kind": "RecipeError", "problems": ["r.yaml:1: one", "r.yaml:2: two"]}),
        (TrainingError("no"), 1, {"kind": "TrainingError", "problems": ["no"]}),
        (ZeroDivisionError("a crash"), 1, {"kind": "ZeroDivisionError", "problems": ["a crash"]}),
        (Interrupted(15), 143, {"kind": "Interrupted", "problems": ["interrupted; the same command goes on where it was"]}),
    ],
)
def test_with_json_stdout_holds_one_object_whatever_is_printed_and_however_it_ends(
    error: BaseException, code: int, told: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def run_recipe(*_: object) -> dict[str, Any]:
        print("a library's own line")
        os.write(1, b"a C library's line\n")
        subprocess.run(["echo", "a reward's process"], check=True)
        raise error

    monkeypatch.setattr("grpo.pipeline.run.run_recipe", run_recipe)
    with pytest.raises(SystemExit) as end:
        app(["run", "r1_tiny", "--json"])
    printed = capfd.readouterr()
    assert end.value.code == code
    assert json.loads(printed.out) == {"error": {**told, "exit_code": code}}
    for line in ("a library's own line", "a C library's line", "a reward's process"):
        assert line in printed.err
    assert ("Traceback" in printed.err) == isinstance(error, ZeroDivisionError)


LISTENING = [name for name, command in COMMANDS.items() if "--json" in [option for each in command.params for option in each.opts]]


@pytest.mark.parametrize("name", LISTENING)
def test_every_command_with_json_answers_a_mistake_on_the_command_line_by_an_object(name: str) -> None:
    ran = grpo(*name.split(), "--no-such-option", "--json")
    error = json.loads(ran.stdout)["error"]
    assert (ran.returncode, error["kind"], error["exit_code"]) == (2, "UsageError", 2)
    assert "--no-such-option" in error["problems"][0] and "--no-such-option" in ran.stderr


def test_a_plan_that_does_not_fit_is_one_object_with_its_error(tmp_path: Path) -> None:
    ran = grpo("plan", "r1_zero_tiny", "hardware={memory_gib: 0.1}", "--out", str(tmp_path / "run"), "--json")
    answer = json.loads(ran.stdout)
    assert ran.returncode == 2 and answer["fits"] is False
    assert answer["error"] == {"kind": "RecipeError", "problems": answer["problems"], "exit_code": 2}


def test_with_json_a_run_that_is_begun_again_prints_the_object_of_its_last_start() -> None:
    ran = grpo("run", "nowhere", "--restarts", "2", "--json")
    assert ran.returncode == 2 and json.loads(ran.stdout)["error"]["kind"] == "RecipeError"


@pytest.mark.parametrize("arguments", [["run", "r1_tiny", "--out", ""], ["plan", "r1_tiny", "--out", " "], ["export", "here", "--to", ""]])
def test_a_folder_that_an_unset_variable_left_empty_is_refused(arguments: list[str]) -> None:
    ran = grpo(*arguments)
    assert ran.returncode == 2 and f"{arguments[-2]} is empty; name a folder" in ran.stderr


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_command_works_without_standard_streams_and_writes_to_its_own_files_only(tmp_path: Path, closed: str) -> None:
    code = (
        "import os; from grpo.util.streams import open_what_is_closed; open_what_is_closed(); file = open('mine', 'wb'); "
        "os.write(1, b'a library prints'); print('so do we', flush=True); os._exit(file.fileno())"
    )
    ran = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", code], cwd=tmp_path, timeout=60, check=False)
    assert ran.returncode > 2 and (tmp_path / "mine").read_bytes() == b""
    ran = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "grpo.cli", "recipes"], cwd=ROOT, timeout=60, check=False
    )
    assert ran.returncode == 0


@pytest.mark.parametrize("arguments", [["recipes"], ["schema"]])
def test_what_answers_at_once_answers_a_script_too(arguments: list[str]) -> None:
    ran = grpo(*arguments, *([] if arguments == ["schema"] else ["--json"]))
    assert ran.returncode == 0 and isinstance(json.loads(ran.stdout), dict) and ran.stderr == ""


def test_a_shell_completes_commands_and_shipped_recipes() -> None:
    assert "recipes" in grpo(_GRPO_COMPLETE="complete_bash", COMP_WORDS="grpo re", COMP_CWORD="1").stdout.split()
    names = grpo(_GRPO_COMPLETE="complete_bash", COMP_WORDS="grpo run r1_zero", COMP_CWORD="2").stdout.split()
    assert names == sorted(path.stem for path in (ROOT / "recipes").glob("r1_zero*.yaml"))


def test_a_wrong_example_would_be_noticed() -> None:
    with pytest.raises(Exception, match="No such option"):
        COMMANDS["plan"].make_context("plan", ["r1_tiny", "--jsn"])
