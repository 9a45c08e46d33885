"""The report shows a run's numbers, curves and completions, finished or not, and nothing that a model wrote is taken for HTML."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from grpo.report.charts import Series, line_chart, number, smooth, thinned, ticks
from grpo.report.formatting import duration, visible
from grpo.report.jsonl_index import Lines
from grpo.report.run_reader import read_run
from grpo.report.samples import shortened
from tests.report.conftest import NASTY, NAUGHTY, RECIPE, ROOT, Page, figure_of, report, rl_metrics, rl_samples, stage, write, write_lines


def test_a_finished_run_shows_its_stages_and_their_scores(run: Path) -> None:
    text = Page(report(run)).text
    for shown in ("small", "complete", "four stages", "01-cold/model", "tiny_llama", "2 min 2 s"):
        assert shown in text
    assert "0.211 → 0.588 ± 0.022" in text and "0.273 → 0.617 ± 0.017" in text  # reason, strict and lenient
    assert "0.000 → 0.491 ± 0.022" in text  # a student that no stage made: its start is measured under a name of its own
    assert "0.663" in text  # whatever else a stage reports


def test_accuracy_of_all_models_stands_side_by_side_with_errors(run: Path) -> None:
    html = report(run)
    for title in ("Strict: right and well-formed", "Lenient: right, whatever the form"):
        figure = figure_of(html, title)
        assert [name for name in ("1 cold", "2 reason", "3 harvest", "4 student") if f">{name}<" in figure] == [
            "1 cold",
            "2 reason",
            "4 student",
        ]
        assert figure.count('class="whisker" d="M') == 6  # before and after of three models
    assert "2 reason, before: 0.211 ± 0.022" in figure_of(html, "Strict")


def test_every_curve_of_an_rl_stage_has_named_axes(run: Path) -> None:
    html = report(run)
    for title, y_name in {
        "Reward": "reward, mean over samples",
        "Held-out accuracy": "fraction of problems",
        "Completion length": "tokens",
        "Clipping": "fraction of tokens",
        "Throughput": "completion tokens per second of rollout",
        "Form": "fraction of completions",
        "Entropy of the policy": "nats per token",
        "KL to the reference": "nats per token",
        "Engine against trainer": "mean |log-prob difference| per token",
        "Where the time goes": "seconds per step",
    }.items():
        figure = figure_of(html, title)
        assert f'class="axis">{y_name}</text>' in figure and 'class="axis middle">step</text>' in figure, title
        assert "<path" in figure and "<title>" in figure, title
    assert 'class="axis middle">update</text>' in figure_of(html, "Loss")


def test_reward_parts_are_the_rewards_and_not_their_failure_counts(run: Path) -> None:
    legend = re.findall(r"</i>([^<]*)</li>", figure_of(report(run), "Reward"))
    assert legend == ["total", "math", "format"]
    (run / "02-reason" / "samples.jsonl").unlink()
    assert re.findall(r"</i>([^<]*)</li>", figure_of(report(run), "Reward")) == legend


def test_a_metric_of_an_earlier_version_has_its_new_name(run: Path) -> None:
    write_lines(run / "02-reason" / "metrics.jsonl", [{"step": 1, "reward/equal_groups_frac": 0.5}])
    assert read_run(run).stages[1].steps == [{"step": 1, "reward/zero_variance_groups_frac": 0.5}]


def test_a_reward_that_is_the_total_is_not_drawn_over_it(run: Path) -> None:
    rows = [{**rl_metrics(step), "reward/math": rl_metrics(step)["reward/total"]} for step in (1, 2)]
    write_lines(run / "02-reason" / "metrics.jsonl", rows)
    assert re.findall(r"</i>([^<]*)</li>", figure_of(report(run), "Reward")) == ["total, math", "format"]


def test_accuracy_curve_has_the_measured_steps_and_both_ends(run: Path) -> None:
    figure = figure_of(report(run), "Held-out accuracy")
    assert "step 0\nstrict: 0.211\nstrict, before and after: 0.211\nlenient: 0.273" in figure
    assert "step 2\nstrict: 0.4\nlenient: 0.5" in figure
    assert "step 1\n" not in figure and "step 3\n" not in figure
    assert figure.count('class="band"') == 1  # strict; of lenient no error is known at steps 2 and 4
    assert figure.count('class="whisker"') == 2  # both are known before and after


def test_rejection_is_counted_by_reason_most_frequent_first(run: Path) -> None:
    text = re.sub(r"\s+", " ", Page(report(run)).text)
    assert (
        "sampled 80 100.0% kept 11 13.8% dropped: truncated 48 60.0% dropped: below min reward 21 26.2% prompts with a kept completion 9"
        in text
    )


def test_every_step_shown_has_best_median_and_worst_samples_of_its_first_prompts(run: Path) -> None:
    html = report(run)
    text = Page(html).text
    assert "First step (1)" in text and "Step 2" in text and "Last step (4)" in text
    for step in (1, 2, 3, 4):
        assert f"step {step} prompt 0 sample 1" in text and f"step {step} prompt 3" in text and f"step {step} prompt 4" not in text
    assert html.count('class="moment at-') == 4 and html.count(' end">') == 2  # the ends are what is shown first
    assert "best: reward 1.2" in text and "median: reward 0.7" in text and "worst: reward 0.2" in text
    assert "one of those that nobody could judge" in text and "mean reward 0.70, 4 samples" in text
    assert "math 0.5" in text and "format –" in text and "advantage -1.25, version 3, 33 tokens, ended by stop" in text


def test_samples_can_be_filtered_by_each_reward_part(run: Path) -> None:
    rows = list(rl_samples(steps=2))
    for i, row in enumerate(rows):
        row["parts"] = {"math": float(i % 2), NASTY: 0.5}
    rows[0]["finish"] = "length"
    write_lines(run / "02-reason" / "samples.jsonl", rows)
    html = report(run)
    page = Page(html)
    labels = [text for text in page.texts if text.startswith(("math ", "<script>", "truncated"))]
    assert {"math at its highest", "math lower", "truncated"} <= set(labels)
    assert not any(label == "math not judged" for label in labels)  # a filter that finds nothing is not offered
    shown = [
        (attributes["class"] or "").split() for tag, attributes in page.elements if (attributes.get("class") or "").startswith("sample ")
    ]
    high, low = (sum(key in keys for keys in shown) for key in ("p0-high", "p0-low"))
    assert high and low and high + low == len(shown)
    radios = [attributes for tag, attributes in page.elements if tag == "input"]
    assert all(attributes["type"] == "radio" for attributes in radios)
    assert f"#browser-2:has(#{'only-2-p0-high'}:checked)" in html and any(a["id"] == "only-2-p0-high" for a in radios)


def test_a_prompt_that_came_again_is_shown_across_steps(run: Path) -> None:
    rows = list(rl_samples(steps=4))
    for row in rows:
        if row["prompt_id"] in ("sums-1-0", "sums-3-0"):
            row["prompt_id"] = "again"
    write_lines(run / "02-reason" / "samples.jsonl", rows)
    text = Page(report(run)).text
    across = text.partition("The same prompt across steps")[2]
    assert "steps 1, 3" in across and "step 1 (mean 0.70 of 4), best: reward 1.2" in across and "step 3 (mean 0.70 of 4), worst" in across


def test_what_a_filtering_stage_kept_and_dropped_can_be_read(run: Path) -> None:
    rows = [
        {"prompt": f"Calculate {i}", "completion": f"{NASTY} number {i}", "prompt_id": f"p{i}", "parts": {"math": 1.0}, "dropped": why}
        for i, why in enumerate([None, "too_long", None, "duplicate"])
    ]
    write_lines(run / "03-harvest" / "samples.jsonl", rows)
    text = Page(report(run)).text.partition("What was kept, and what was dropped")[2]
    assert "kept" in text and "dropped: too long" in text and "dropped: duplicate" in text and text.count("number 2") == 1


def test_held_out_problems_are_shown_model_by_model(run: Path) -> None:
    for name, right in (("base", 0.0), ("cold", 0.0), ("reason", 1.0)):
        items = [
            {
                "prompt_id": f"heldout/{i}",
                "question": f"What is {i} + 1?",
                "answer": str(i + 1),
                "text": f"{name} says {NASTY}",
                "accuracy": right,
                "lenient": 1.0,
            }
            for i in range(9)
        ]
        write_lines(run / "evals" / f"{name}.items.jsonl", items)
    page = Page(report(run))
    assert "What is 0 + 1?" in page.text and "right: 1 of 3 models" in page.text and "script" not in {tag for tag, _ in page.elements}
    assert "reason: right" in page.text and "base: right, but not in the form asked for" in page.text


def test_no_html_of_a_completion_survives(run: Path) -> None:
    html = report(run)
    page = Page(html)
    assert not {"script", "img", "iframe", "link", "object", "base"} & {tag for tag, _ in page.elements}
    assert not any(name.startswith("on") or name == "src" for _, attributes in page.elements for name in attributes)
    assert "<script>alert(1)</script>⟨U+001B⟩[31mred⟨U+0007⟩↵\n</pre>" in page.text
    assert "⟨U+202E⟩evil⟨U+D800⟩ {{ 7 * 7 }}" in page.text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e]", html)


@pytest.mark.parametrize("place", ["prompt", "answer", "finish", "parts", "reward name", "stage name", "description", "status"])
def test_nothing_else_of_a_run_is_taken_for_html_either(run: Path, place: str) -> None:
    rows = list(rl_samples(steps=1))
    for row in rows:
        if place in ("prompt", "answer", "finish"):
            row[place] = NASTY
        if place in ("parts", "reward name"):
            row["parts"] = {NASTY: 1.0}
    write_lines(run / "02-reason" / "samples.jsonl", rows)
    if place == "reward name":
        write_lines(run / "02-reason" / "metrics.jsonl", [{**rl_metrics(1), f"reward/{NASTY}": 0.5}])
    if place == "description":
        (run / "recipe.yaml").write_text(RECIPE.replace("four stages", json.dumps(NAUGHTY)))
    if place == "stage name":
        (run / "recipe.yaml").write_text(RECIPE.replace("name: cold", f"name: {json.dumps('../' + NAUGHTY)}"))
    if place == "status":
        write(run / "summary.json", {"status": f'complete" onclick="{NASTY}'})
    page = Page(report(run))
    assert "script" not in {tag for tag, _ in page.elements} and not any("onclick" in attributes for _, attributes in page.elements)
    assert "alert(1)" in page.text.partition("recipe.yaml, with")[0]


def test_works_offline(run: Path) -> None:
    html = report(run)
    assert "http://" not in html and "https://" not in html and "@import" not in html and "url(" not in html
    assert "default-src 'none'" in html  # nor would a browser load anything
    assert not any(name in ("src", "srcset", "action", "data") for _, attributes in Page(html).elements for name in attributes)
    links = [attributes["href"] for tag, attributes in Page(html).elements if "href" in attributes]
    assert links and all(link and link.startswith("#") for link in links)


def test_a_page_stays_small_however_many_steps_and_however_long_the_completions(run: Path) -> None:
    write_lines(run / "02-reason" / "metrics.jsonl", [rl_metrics(step) for step in range(1, 3001)])
    write_lines(run / "02-reason" / "samples.jsonl", [{**row, "text": "long " * 20_000} for row in rl_samples(steps=9)])
    assert len(report(run).encode()) < 1_000_000


@pytest.mark.slow
def test_a_long_run_makes_a_small_page_in_seconds_and_little_memory(run: Path) -> None:
    write_lines(run / "02-reason" / "metrics.jsonl", [rl_metrics(step) for step in range(1, 2001)])
    with (run / "02-reason" / "samples.jsonl").open("w") as file:
        for step in range(1, 2001):
            for sample in range(50):
                row = {
                    "step": step,
                    "prompt_id": f"p{step}-{sample // 10}",
                    "prompt": "Calculate",
                    "text": "so it is " * 20 + NAUGHTY,
                    "reward": sample / 50,
                }
                file.write(json.dumps({**row, "parts": {"math": sample % 2}, "completion_tokens": sample}) + "\n")
    measure = (
        "import re, sys, time; from pathlib import Path; from grpo.report.page import write_report\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) / 1024\n"
        "before, began = peak(), time.process_time(); write_report(Path(sys.argv[1])); print(time.process_time() - began, peak() - before)"
    )
    printed = subprocess.run([sys.executable, "-c", measure, str(run)], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    seconds, mebibytes = map(float, printed.split())
    assert (run / "report.html").stat().st_size < 1_500_000
    assert seconds < 20 and mebibytes < 60  # 3.2 s and 10 MiB on two cores


def test_a_huge_file_of_samples_is_read_in_pieces(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run / "02-reason" / "samples.jsonl"
    write_lines(path, [{**row, "text": "long " * 400} for row in rl_samples(steps=300)])
    lines = Lines(path, max_bytes=1 << 20)
    steps = [row["step"] for row in lines]
    assert lines.is_sampled and lines.num_unread == 0
    assert steps == sorted(steps) and steps[0] == 1 and steps[-1] == 300 and len(set(steps)) > 50
    assert 0.5 * (1 << 20) < len(steps) / 7200 * path.stat().st_size < 1.5 * (1 << 20)


def test_a_run_that_stopped_shows_how_far_it_got(run: Path) -> None:
    (run / "02-reason" / "stage.json").unlink()
    (run / "evals" / "reason.json").unlink()
    for later in ("03-harvest", "04-student"):
        (run / later / "stage.json").unlink()
        for file in (run / later).iterdir():
            file.unlink()
        (run / later).rmdir()
    write_lines(run / "02-reason" / "metrics.jsonl", [rl_metrics(1), rl_metrics(2)])
    pending = [
        {"name": name, "kind": kind, "status": "pending"}
        for name, kind in (("reason", "rl"), ("harvest", "reject"), ("student", "distill"))
    ]
    write(
        run / "summary.json",
        {"recipe": "small", "status": "failed", "stages": [{"name": "cold", "kind": "sft", "status": "complete"}, *pending]},
    )
    html = report(run)
    text = Page(html).text
    assert "failed" in text and "unfinished" in text and "2 of 4 steps" in text and text.count("pending") == 2
    assert "0.211 → –" in text  # what it started from was measured
    assert 'id="stage-2"' in html and 'id="stage-3"' not in html


def test_a_run_that_failed_says_which_stage_and_why(run: Path) -> None:
    (run / "02-reason" / "stage.json").unlink()
    error = {"kind": "TrainingError", "message": "the gradient was <not> finite"}
    stages = [{"name": "cold", "kind": "sft", "status": "complete"}, {"name": "reason", "kind": "rl", "status": "failed", "error": error}]
    write(run / "summary.json", {"recipe": "small", "status": "failed", "stages": stages, "error": error})
    html = report(run)
    assert "stage reason: TrainingError: the gradient was <not> finite" in Page(html).text and "<not>" not in html
    assert '<span class="status failed">failed</span></h2>' in html  # of the stage


def test_the_first_stage_of_a_running_run_can_be_looked_at(run: Path) -> None:
    (run / "summary.json").unlink()
    (run / "01-cold" / "stage.json").unlink()
    text = Page(report(run)).text
    assert "small" in text and "unfinished" in text


FILES = [
    "summary.json",
    "recipe.yaml",
    "evals/base.json",
    "01-cold/metrics.jsonl",
    "02-reason/stage.json",
    "02-reason/metrics.jsonl",
    "02-reason/samples.jsonl",
]


@pytest.mark.parametrize(
    "contents", [None, "half", b"", b"null\n", b"[1, {}]\n", b'{"stages": 7, "step": "x", "metrics": []}\n', b"\xff\xfe\x00{", b"[" * 40]
)
@pytest.mark.parametrize("name", FILES)
def test_missing_torn_or_foreign_files_are_left_out(run: Path, name: str, contents: bytes | str | None) -> None:
    file = run / name
    if contents is None:
        file.unlink()
    else:
        file.write_bytes(contents if isinstance(contents, bytes) else file.read_bytes()[: file.stat().st_size // 2])
    assert "4 student" in report(run)


@pytest.mark.parametrize(
    "contents",
    [b"", b"null\n", b"[1, {}]\n", b"\xff\xfe\x00{", b"[" * 100_000, b'{"starts": [3, {"git": 7, "versions": []}], "files": 1}\n'],
)
@pytest.mark.parametrize(
    "name", ["lineage.json", "02-reason/lineage.json", "02-reason/alarms.jsonl", "evals/base.items.jsonl", "evals/reason.json"]
)
def test_files_that_only_newer_runs_have_may_be_foreign_too(run: Path, name: str, contents: bytes) -> None:
    (run / name).write_bytes(contents)
    assert "4 student" in report(run)


@pytest.mark.parametrize("row", [{"starts": [{"at": [1], "command": [{}], "hardware": {"gpus": 7, "cores": None}, "git": {"changed": 3}}]}])
def test_a_start_of_another_shape_is_shown_as_far_as_it_can_be(run: Path, row: dict[str, object]) -> None:
    write(run / "lineage.json", row)
    assert "Started [1]" in Page(report(run)).text


def test_a_page_says_what_is_missing_or_torn(run: Path) -> None:
    write_lines(run / "04-student" / "metrics.jsonl", [{"step": 1, "loss/total": 2.5}])
    write_lines(run / "03-harvest" / "samples.jsonl", [{"prompt": "?", "completion": "!", "dropped": None}])
    assert "What is missing" not in report(run)
    (run / "03-harvest" / "samples.jsonl").unlink()
    (run / "04-student" / "metrics.jsonl").unlink()
    with (run / "02-reason" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "reward/total": 0.')
    with (run / "02-reason" / "samples.jsonl").open("a") as file:
        file.write('[1, 2]\n{"step": 4, "text": "half')
    (run / "summary.json").unlink()
    (run / "04-student" / "stage.json").write_text("{")
    text = Page(report(run)).text
    assert "summary.json is not there" in text
    assert "2 reason: metrics.jsonl: 1 line torn or no JSON object, left out" in text
    assert "2 reason: samples.jsonl: 2 lines torn or no JSON object, left out" in text
    assert "4 student: stage.json cannot be read" in text and "4 student: there is no metrics.jsonl" in text
    assert "3 harvest: there is no samples.jsonl" in text
    assert "last sign of life" in text


def test_a_running_stage_says_how_long_it_will_take(run: Path) -> None:
    (run / "02-reason" / "stage.json").unlink()
    (run / "summary.json").unlink()
    write_lines(run / "02-reason" / "metrics.jsonl", [rl_metrics(1)])
    assert "1 of 4 steps, about 6.0 s left" in Page(report(run)).text  # three steps of 2 s


def test_alarms_stand_first_and_are_escaped(run: Path) -> None:
    rows = [{"step": 12, "alarm": NASTY, "text": f"too short {NASTY}", "evidence": {"text": NASTY}}, {"alarm": 7}, {"evidence": [1]}]
    write_lines(run / "02-reason" / "alarms.jsonl", rows)
    page = Page(report(run))
    assert page.text.index("Alarms") < page.text.index("01-cold/model")
    assert "too short <script>alert(1)</script>" in page.text and ", step 12" in page.text
    assert "script" not in {tag for tag, _ in page.elements}


def test_memory_and_clipping_are_drawn_where_they_are_logged(run: Path) -> None:
    assert "<b>Memory</b>" not in report(run)
    write_lines(run / "02-reason" / "metrics.jsonl", [{**rl_metrics(step), "memory/trainer_gib": 3.5 + step} for step in (1, 2)])
    assert "step 2\ntrainer: 5.5" in figure_of(report(run), "Memory").replace("memory/trainer_gib", "trainer")
    assert "clipped" in figure_of(report(run), "Clipping")


def test_lengths_are_drawn_between_percentiles_of_the_samples(run: Path) -> None:
    write_lines(run / "02-reason" / "metrics.jsonl", [rl_metrics(step) for step in range(1, 16)])
    assert "10 to 90%" not in figure_of(report(run), "Completion length")  # of four steps there are samples
    rows = [{**row, "completion_tokens": 10 * i} for i, row in enumerate(rl_samples(steps=15))]
    write_lines(run / "02-reason" / "samples.jsonl", rows)
    figure = figure_of(report(run), "Completion length")
    assert figure.count('class="band"') == 1 and "10 to 90% of samples" in figure


def test_eval_stages_stand_beside_the_others_by_their_held_out_set(run: Path) -> None:
    exam = "- {name: exam, kind: eval, from: student, evaluation: {prompts: hard}}\n"
    (run / "recipe.yaml").write_text(RECIPE.replace("stages:", "evaluation: {prompts: heldout}\nstages:") + exam)
    stage(run, 5, "exam", "eval", "student", {"eval/accuracy": 0.125, "eval/accuracy_se": 0.01, "eval/lenient": 0.25})
    html = report(run)
    assert "5 exam, measured: 0.125 ± 0.010" in figure_of(html, "Strict: right and well-formed (hard)")
    assert "exam" not in figure_of(html, "Strict: right and well-formed (heldout)")


def test_lineage_shows_hashes_versions_machine_and_git_state(run: Path) -> None:
    start = {"at": "2026-11-22T08:00:00+00:00", "command": ["grpo", "run", NASTY], "versions": {"torch": "2.13.0"}}
    machine = {"hardware": {"processor": "a processor", "cores": 2, "memory_gib": 23.5, "gpus": ["H100, 80 GB"]}}
    write(
        run / "lineage.json",
        {"starts": [{**start, **machine, "git": {"commit": "abc", "branch": "main", "num_changed": 1, "changed": [" M my.py"]}}, 7]},
    )
    files = [{"file": "model/model.safetensors", "bytes": 5 << 20, "sha256": "f00d"}, "foreign"]
    write(run / "02-reason" / "lineage.json", {"inputs": ["cold", "sums"], "files": files})
    page = Page(report(run))
    for shown in (
        "torch 2.13.0",
        "a processor, 2 cores, 23.5 GiB of memory",
        "H100, 80 GB",
        "abc on main, 1 file(s) changed",
        "M my.py",
        "f00d",
        "5 MiB",
        "cold, sums",
    ):
        assert shown in page.text
    assert "script" not in {tag for tag, _ in page.elements}


def test_headings_come_in_order_and_every_chart_and_control_has_a_name(run: Path) -> None:
    write_lines(run / "02-reason" / "alarms.jsonl", [{"step": 1, "alarm": "a", "text": "b"}])
    html = report(run)
    levels = [int(tag[1]) for tag, _ in Page(html).elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))
    charts = [attributes for tag, attributes in Page(html).elements if tag == "svg"]
    assert charts and all(attributes["role"] == "img" and attributes["aria-label"] for attributes in charts)
    assert len(re.findall(r"<label><input [^>]*>[^<]+</label>", html)) == html.count("<input ")
    assert html.count("<fieldset>") == html.count("<legend>")
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    assert "Nothing has been written to this folder yet." in report(tmp_path)


def test_a_second_report_replaces_the_first_and_leaves_nothing_else(run: Path) -> None:
    before = {path.name for path in run.iterdir()}
    first = report(run)
    assert report(run) == first
    assert {path.name for path in run.iterdir()} - before == {"report.html"}


def test_ticks_are_round_numbers_within_the_range() -> None:
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(0.0031, 0.0072) == pytest.approx([0.004, 0.005, 0.006, 0.007])
    assert ticks(-3, 12) == pytest.approx([0, 5, 10])


def test_smoothing_keeps_a_constant_and_the_number_of_points() -> None:
    assert smooth([3.0] * 100) == pytest.approx([3.0] * 100)  # also at the ends, where half the neighbours are missing
    assert list(smooth([1.0, 5.0])) == [1.0, 5.0]
    assert len(thinned([(float(i), 1.0) for i in range(1001)])) == 200


def test_a_band_is_one_standard_deviation_about_the_line() -> None:
    chart = line_chart("t", "y", [Series("a", [(float(i), 2.0 * (i % 2)) for i in range(100)], has_band=True)])
    assert chart is not None
    path = re.findall(r'class="band" d="M([^"]*)Z"', chart.shapes)[0]
    points = [tuple(map(float, point.split())) for point in path.split("L")]
    middle = [y for x, y in points if 150 < x < 300]
    # 0 and 2 in turn: mean 1, deviation 1, so from 0, which lies at 202, to 2, at 202 - 176 * 2 / 2.1
    assert min(middle) == pytest.approx(34.4, abs=1.0) and max(middle) == pytest.approx(202, abs=1.0)
    assert 'class="band"' not in str(line_chart("t", "y", [Series("a", [(1.0, 2.0), (2.0, 1.0)], has_band=True)]).shapes)  # too short


def test_an_error_of_zero_and_a_single_point_can_be_drawn() -> None:
    chart = line_chart("t", "y", [Series("a", [(1.0, 0.0)], errors=[0.0], style="marked")])
    assert chart is not None and "nan" not in chart.figure() and "inf" not in chart.figure()
    assert line_chart("t", "y", [Series("a", [])]) is None


def test_words_for_people() -> None:
    assert [duration(s) for s in (None, 3.14159, 59.4, 61, 7260)] == ["–", "3.1 s", "59 s", "1 min 1 s", "2 h 1 min"]
    assert [number(x) for x in (None, 4.0, 0.123456, 12345.6)] == ["–", "4", "0.123", "12,346"]
    assert visible("a\tb\r\n\u200bé") == "a⇥\tb⟨U+000D⟩↵\n⟨U+200B⟩é"
    assert shortened("x" * 60 + "y" * 60, 100) == "x" * 60 + "\n[... 20 characters left out ...]\n" + "y" * 40
