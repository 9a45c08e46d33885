"""A running run's report stays fresh, costs little, and never ends the run; a report is written on command, with pictures if wished."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from grpo.cli import app
from grpo.report import page as reports
from grpo.report.comparison import paired_difference
from grpo.report.page import ReportRefresh
from grpo.run.progress import Progress
from tests.report.conftest import NAUGHTY, RECIPE, Page, rl_metrics, stage, write_lines


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(reports.time, "monotonic", clock.monotonic)
    return clock


def test_a_report_is_refreshed_after_a_step_once_it_is_due(tmp_path: Path, clock: Clock) -> None:
    refresh = ReportRefresh(tmp_path)
    progress = Progress(1, after_step=refresh.if_due)
    progress.step(1, 100, {})
    assert not (tmp_path / "report.html").exists()
    clock.now += 21.0
    progress.step(2, 100, {})
    written = (tmp_path / "report.html").stat().st_mtime_ns
    progress.step(3, 100, {})
    assert (tmp_path / "report.html").stat().st_mtime_ns == written


def test_a_slow_report_is_refreshed_less_often(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[float] = []

    def slow(folder: Path) -> None:
        times.append(clock.now)
        clock.now += 3.0

    monkeypatch.setattr(reports, "write_report", slow)
    refresh = ReportRefresh(tmp_path)
    for _ in range(1000):
        clock.now += 1.0
        refresh.if_due()
    gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
    assert gaps and min(gaps) >= 150  # 3 s are 2% of it


def test_a_report_that_fails_is_said_once_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(folder: Path) -> None:
        raise RuntimeError("no such colour")

    monkeypatch.setattr(reports, "write_report", broken)
    refresh = ReportRefresh(tmp_path)
    refresh.now()
    refresh.now()
    assert capsys.readouterr().err == "grpo: the report was not written: RuntimeError: no such colour\n"


def grpo(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["report", *map(str, arguments)])
    return result.exit_code, result.output


def test_the_command_writes_a_report_where_it_is_told(run: Path, tmp_path: Path) -> None:
    assert grpo(run) == (0, f"{run / 'report.html'}\n")
    (run / "report.html").unlink()
    assert grpo(run, "--out", tmp_path / "new" / "page.html")[0] == 0
    assert "4 student" in (tmp_path / "new" / "page.html").read_text() and not (run / "report.html").exists()


def test_a_folder_without_a_run_is_bad_input(tmp_path: Path) -> None:
    code, said = grpo(tmp_path)
    assert code == 2 and "holds no run" in said and "runs/<name>" in said
    code, said = grpo(tmp_path / "nowhere")
    assert code == 2 and "is no folder" in said


def test_a_report_that_cannot_be_written_is_bad_input(run: Path) -> None:
    (run / "taken").write_text("")
    code, said = grpo(run, "--out", run / "taken" / "page.html")
    assert code == 2 and "taken" in said and "--out" in said


def test_every_chart_becomes_a_picture_that_stands_alone(run: Path) -> None:
    write_lines(run / "02-reason" / "metrics.jsonl", [{**rl_metrics(step), f"memory/{NAUGHTY}": 1.0} for step in (1, 2)])
    code, said = grpo(run, "--pictures", run / "pictures")
    files = sorted((run / "pictures").glob("*.svg"))
    assert code == 0 and {file.name for file in files} >= {"accuracy-strict.svg", "reason-reward.svg", "cold-loss.svg"}
    assert all(str(file) in said for file in files)
    for file in files:
        text = file.read_text()
        root = ElementTree.fromstring(text)
        names = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert {"title", "style", "path"} <= names <= {"svg", "title", "style", "rect", "path", "text", "g"}
        assert re.findall('https?://[^"]*', text) == ["http://www.w3.org/2000/svg"]  # a name, which nothing fetches
        assert "prefers-color-scheme: dark" in text and len(text) < 60_000
    drawn = (run / "pictures" / "reason-reward.svg").read_text()
    assert ">total</text>" in drawn and ">math</text>" in drawn  # the legend


def test_two_runs_are_compared_by_score_setting_and_curve(run: Path, tmp_path: Path) -> None:
    other = tmp_path.parent / f"{tmp_path.name}-other"
    other.mkdir()
    recipe = (
        RECIPE.replace("steps: 4", "steps: 2")
        .replace("name: small", "name: other")
        .replace("- {name: harvest, kind: reject, from: reason}\n", "")
    )
    (other / "recipe.yaml").write_text(recipe)
    stage(other, 1, "cold", "sft", "base", {"eval/accuracy_after": 0.311, "eval/accuracy_se": 0.03})
    stage(other, 2, "reason", "rl", "cold", {"eval/accuracy_after": 0.688, "eval/accuracy_se": 0.0})
    stage(other, 3, NAUGHTY.replace("/", ""), "eval", "reason", {})
    write_lines(other / "02-reason" / "metrics.jsonl", [rl_metrics(step) for step in (1, 2)])
    code, said = grpo(run, "--against", other)
    html = (run / "comparison.html").read_text()
    text = Page(html).text
    assert code == 0 and said == f"{run / 'comparison.html'}\n"
    assert "+0.100 ± 0.037" in text  # 0.311 - 0.211, and the root of 0.022² + 0.03²
    assert "+0.100 ± 0.022" in text  # 0.688 - 0.588
    assert "stages.reason.steps" in text and "harvest (reject), only in" in text
    assert "seed" not in text.partition("Settings")[2]  # neither recipe has one
    assert html.count("<figure>") > 10
    assert "script" not in {tag for tag, _ in Page(html).elements} and "http://" not in html and "https://" not in html


def test_models_that_answered_the_same_problems_are_compared_problem_by_problem(run: Path, tmp_path: Path) -> None:
    def answer(folder: Path, right: list[list[int]]) -> None:
        (folder / "evals").mkdir(parents=True, exist_ok=True)
        named = [(f"h/{i}", float(one)) for i, drawn in enumerate(right) for one in drawn]
        rows = [{"prompt_id": name, "question": "?", "accuracy": one, "lenient": one} for name, one in named]
        write_lines(folder / "evals" / "cold.items.jsonl", [*rows, {"prompt_id": "h/0", "question": "?", "accuracy": None, "lenient": 0.0}])

    def compared() -> str:
        assert grpo(run, "--against", other)[0] == 0
        return " ".join(Page((run / "comparison.html").read_text()).text.split())

    other = tmp_path / "other"
    stage(other, 1, "cold", "sft", "base", {"eval/accuracy_after": 0.75, "eval/accuracy_se": 0.2})
    answer(run, [[0, 0], [1, 0], [1, 1], [0, 0]])
    answer(other, [[1, 0], [1, 1], [1, 1], [0, 0]])
    # Problem by problem +1/2, +1/2, 0, 0: mean 1/4; deviations of ±1/4, so s² = 4/16 / 3, and the error is sqrt(1/12 / 4) = 0.144.
    assert "+0.250 ± 0.144 problem by problem" in compared()
    answer(other, [[1, 0], [1, 1], [1, 1]])  # of the fourth nothing is known
    assert "+0.539 ± 0.201 as of two separate sets" in compared()  # 0.75 - 0.211, and the root of 0.2² + 0.022²
    assert paired_difference({("a", "1 + 1?"): 1.0, ("b", "?"): 0.0}, {("a", "1 + 2?"): 1.0, ("b", "?"): 0.0}) is None  # asked otherwise
    assert paired_difference({("a", "?"): 1.0}, {("a", "?"): 1.0}) is None  # of one problem there is no error


def test_a_run_compared_with_itself_differs_in_nothing(run: Path, tmp_path: Path) -> None:
    assert grpo(run, "--against", run, "--out", tmp_path / "same.html")[0] == 0
    text = Page((tmp_path / "same.html").read_text()).text
    assert "Both recipes are the same." in text and "only in" not in text
    assert set(re.findall(r"[+-]\d\.\d{3} ±", text)) == {"+0.000 ±"}
