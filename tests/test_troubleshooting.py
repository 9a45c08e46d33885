"""Are the messages that docs/troubleshooting.md explains still those of the code, and the keys that it names still keys?"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo.config import Keep, Lora, Rollout, Trainer

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
HEADINGS = re.findall(r"^### `(.+)`$", PAGE, flags=re.M)
GAP = "…"


def texts_of(path: Path) -> Iterator[str]:
    """Every string of a file, adjacent pieces joined, with a gap for each value that is put in."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


TEXTS = "\0".join(
    text for room in ("grpo", "rewards", "rollout") for path in sorted((ROOT / room).rglob("*.py")) for text in texts_of(path)
)


def test_there_is_something_to_hold() -> None:
    assert len(HEADINGS) > 25 and PAGE.count("### ") == len(HEADINGS)


@pytest.mark.parametrize("heading", HEADINGS)
def test_each_message_is_one_of_the_codes(heading: str) -> None:
    """Each run of words between gaps stands in the code's own texts. Messages are put together of several, so in any of them."""
    pieces = [piece.strip(" :;,?()") for piece in re.split(f"{GAP}|: ", heading)]
    assert [piece for piece in pieces if len(piece) > 3 and piece not in TEXTS] == []


def test_each_key_it_names_is_one_of_the_schemas() -> None:
    parts = {"rollout": Rollout, "trainer": Trainer, "keep": Keep, "lora": Lora}
    named = re.findall(r"\b(rollout|trainer|keep|lora)\.(?!py)([a-z_]+)", PAGE)
    assert len(named) > 5
    assert [f"{part}.{key}" for part, key in named if key not in parts[part].model_fields] == []


def test_a_message_that_is_gone_would_be_noticed() -> None:
    assert "the gradient was not finite in" in TEXTS and "the gradient was never finite in" not in TEXTS
