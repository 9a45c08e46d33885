"""References, settings and columns: what loads, and what each mistake is told."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from rewards import SHIPPED, RewardError, RewardRuntime, RewardSpec, ScoreInput, check_reward, load_reward
from rewards.load import installed_rewards

MINE = """
    from rewards import reward

    @reward(required=True, undecidable=0.0)
    def close_to(completion: str, target: float, scale: float = 1.0, *, tolerance: float = 0.1, mode: str = "abs") -> float:
        return float(abs(float(completion) - target * scale) <= tolerance)

    def bare(completion, finish, *, need):
        return 1.0

    def starred(*completions_of_mine):
        return 1.0

    LIMIT = 3
"""


def test_the_packages_import_loads_nothing_heavy() -> None:
    heavy = [
        "torch",
        "ray",
        "transformers",
        "httpx2",
        "numpy",
        "sympy",
        "math_verify",
        "pebble",
        "py3langid",
        "pydantic",
        "grpo",
        "rollout",
    ]
    code = f"import sys, rewards; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert found.stdout.strip() == "[]"


NEEDED = {"length": {"max_tokens": 10}, "judge": {"base_url": "http://localhost/v1", "model": "m"}, "reward_model": {"model": "org/name"}}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_reward_loads(name: str) -> None:
    fn = load_reward(name, **NEEDED.get(name, {}))
    assert fn.name == name and fn.required == (name in ("math", "choice", "code", "reasoning_gym"))
    assert fn.is_batch == (name in ("judge", "reward_model"))


def test_a_reward_knows_its_columns_settings_and_options(reward_file: Callable[..., Path]) -> None:
    fn = load_reward("./mine.py:close_to", base=reward_file(MINE), tolerance=0.5)
    assert (fn.name, fn.columns, fn.optional) == ("close_to", ("completion", "target"), ("scale",))
    assert fn.settings == {"tolerance": 0.5, "mode": "abs"} and fn.required and fn.undecidable == 0
    assert fn(completion="1.4", target=1) == 1 and fn(completion="1.4", target=1, scale=3, unrelated="x") == 0


def test_a_call_without_a_column_says_which(reward_file: Callable[..., Path]) -> None:
    with pytest.raises(RewardError, match=r"reward 'close_to' needs 'target'; given: \['completion'\]"):
        load_reward("./mine.py:close_to", base=reward_file(MINE))(completion="1")


def test_a_users_file_named_rewards_shadows_nothing(reward_file: Callable[..., Path]) -> None:
    folder = reward_file("from rewards import reward\n\ndef one(completion):\n    return 1.0\n", "rewards.py")
    assert load_reward("./rewards.py:one", base=folder)(completion="") == 1
    assert Path(sys.modules["rewards"].__file__ or "").name == "__init__.py"


def test_module_references_and_decorated_functions_stay_plain(monkeypatch: pytest.MonkeyPatch, reward_file: Callable[..., Path]) -> None:
    monkeypatch.syspath_prepend(reward_file(MINE, "my_rewards_module.py"))
    assert load_reward("my_rewards_module:close_to")(completion="1", target=1) == 1
    import my_rewards_module  # type: ignore[import-not-found]

    assert my_rewards_module.close_to("1", 1) == 1


@pytest.mark.parametrize(
    ("ref", "settings", "said"),
    [
        ("maths", {}, "unknown reward 'maths'; did you mean 'math'?; shipped rewards: math, exact, fuzzy"),
        ("math", {"extrct": "boxed"}, "reward 'math' has no setting 'extrct'; did you mean 'extract'?; it has: extract, answer_tag"),
        (
            "math",
            {"extract": "box"},
            "reward 'math': setting extract: Input should be 'answer_tag', 'boxed', 'last_number' or 'auto', found 'box'",
        ),
        ("length", {}, "reward 'length' needs the setting 'max_tokens'"),
        ("length", {"max_tokens": "many"}, "setting max_tokens: Input should be a valid integer"),
        ("length", {"max_tokens": 10, "buffer": 11}, "reward 'length': buffer is 11; it must lie between 0 and max_tokens, 10"),
        ("language", {"language": "english"}, "setting language: Input should be 'en', 'de'"),
        ("repetition", {"n": 0}, "n must be at least 1 (found 0)"),
        ("./mine.py", {}, "names a file but no function; write ./mine.py:name"),
        ("./mime.py:close_to", {}, "did you mean './mine.py'?"),
        ("./mine.py:close", {}, "./mine.py has no function 'close'; found ['close_to', 'bare', 'starred']; did you mean 'close_to'?"),
        ("./mine.py:LIMIT", {}, "'LIMIT' in ./mine.py is int, not a function"),
        ("./mine.py:bare", {}, "reward './mine.py:bare' needs the setting 'need'"),
        ("./mine.py:starred", {}, "parameter '*completions_of_mine' can't be filled; parameters are column names"),
        ("./broken.py:f", {}, "broken.py cannot be loaded: SyntaxError"),
        ("./exits.py:f", {}, "exits.py cannot be loaded: SystemExit: 3"),
        ("no_such_package.rewards:f", {}, "module 'no_such_package.rewards' cannot be imported: ModuleNotFoundError"),
    ],
)
def test_each_mistake_is_one_line_that_says_what_to_do(reward_file: Callable[..., Path], ref: str, settings: dict, said: str) -> None:
    folder = reward_file(MINE)
    reward_file("def f(:", "broken.py")
    reward_file("raise SystemExit(3)", "exits.py")
    (problem,) = check_reward(ref, settings, base=folder)
    assert said in problem and "\n" not in problem
    with pytest.raises(RewardError) as raised:
        load_reward(ref, base=folder, **settings)
    assert str(raised.value) == problem


def test_all_problems_come_at_once() -> None:
    problems = check_reward("math", {"tag": "x", "extract": 3}, columns=["question", "solution"])
    assert len(problems) == 3 and problems[2].endswith(
        "column 'answer' not found; found ['question', 'solution']; did you mean 'solution'?"
    )


def test_a_sound_reward_has_no_problems(reward_file: Callable[..., Path]) -> None:
    assert check_reward("math", {}, columns=["answer"]) == []
    assert check_reward("./mine.py:close_to", {"tolerance": 1}, columns=["target"], base=reward_file(MINE)) == []


def test_a_misspelt_column_is_suggested() -> None:
    (problem,) = check_reward("exact", {}, columns=["anwser"])
    assert problem == "reward 'exact': column 'answer' not found; found ['anwser']; did you mean 'anwser'?"


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a distribution with entry points where Python finds installed ones: a module and a dist-info folder on sys.path."""

    def install(name: str, module: str, **points: str) -> None:
        site = tmp_path / f"site-{name}"
        (site / f"{name}-1.0.dist-info").mkdir(parents=True)
        (site / f"{name}.py").write_text(dedent(module))
        (site / f"{name}-1.0.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = "".join(f"{point} = {value}\n" for point, value in points.items())
        (site / f"{name}-1.0.dist-info" / "entry_points.txt").write_text(f"[grpo.rewards]\n{lines}")
        monkeypatch.syspath_prepend(site)

    return install


SHORT = "def short(completion: str, *, limit: int = 3) -> float:\n    return float(len(completion) <= limit)\n"


def test_an_installed_reward_is_named_like_a_shipped_one(distribution: Callable[..., None]) -> None:
    distribution("brevity", SHORT, short="brevity:short", math="brevity:short", gone="brevity:gone", three="brevity:__name__")
    fn = load_reward("short", limit=5)
    assert fn.name == fn.ref == "short" and fn(completion="12345") == 1 and fn(completion="123456") == 0
    assert load_reward("math").function.__module__ == "rewards.rules.math"
    assert installed_rewards() == {"short": "brevity:short", "gone": "brevity:gone", "three": "brevity:__name__"}
    assert check_reward("short", {"limt": 5}) == ["reward 'short' has no setting 'limt'; did you mean 'limit'?; it has: limit"]
    assert "did you mean 'short'?" in check_reward("shrt", {})[0] and "installed: short, gone, three" in check_reward("shrt", {})[0]
    assert check_reward("gone", {})[0].startswith("reward 'gone': the installed brevity:gone cannot be loaded: AttributeError")
    assert check_reward("three", {}) == ["reward 'three': the installed brevity:__name__ is str, not a function"]


def test_two_distributions_that_offer_the_same_name_are_told_apart(distribution: Callable[..., None]) -> None:
    distribution("brevity", SHORT, short="brevity:short")
    distribution("terse", SHORT, short="terse:short")
    assert check_reward("short", {}) == ["reward 'short' is offered more than once: brevity:short, terse:short; write one of these instead"]
    assert load_reward("terse:short")(completion="abc") == 1


def test_an_installed_reward_scores_in_the_processes_of_the_runtime(distribution: Callable[..., None]) -> None:
    distribution("brevity", SHORT, short="brevity:short")
    with RewardRuntime([RewardSpec("short")]) as runtime:
        assert [one.reward for one in runtime.score([ScoreInput({"completion": text}) for text in ("abc", "abcd")])] == [1, 0]
