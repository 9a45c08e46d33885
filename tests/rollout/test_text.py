"""What text a completion has, and where a model's folder says that it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rollout.text import CompletionText, end_ids


@pytest.mark.parametrize(
    ("config", "generation", "ids"),
    [
        ({"eos_token_id": 3}, {}, [3]),
        ({"eos_token_id": 3}, {"eos_token_id": [4, 5]}, [4, 5]),
        ({"text_config": {"eos_token_id": [6]}}, {"temperature": 1.0}, [6]),
        ({"eos_token_id": None}, {}, []),
        ({"eos_token_id": 0}, {}, [0]),
    ],
)
def test_which_ids_a_model_stops_at(tmp_path: Path, config: dict[str, Any], generation: dict[str, Any], ids: list[int]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert end_ids(tmp_path) == ids


def test_a_folder_without_configuration_names_no_end(tmp_path: Path) -> None:
    assert end_ids(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "stop", "read"),
    [
        ("a</answer>\n", ("</answer>",), "a</answer>"),
        ("one two", ("two", "ne"), "one"),
        ("one", ("x",), "one"),
        ("<answer>7</answer><|end|>", (), "<answer>7</answer>"),
        ("7<|end|>", ("<|end|>",), "7"),
    ],
)
def test_the_text_goes_up_to_the_end_of_the_first_stop_string(tokenizer: Any, text: str, stop: tuple[str, ...], read: str) -> None:
    tokens = tokenizer.encode(text, add_special_tokens=False)
    reader = CompletionText(tokenizer, tokenizer.added_tokens_decoder, ())
    assert reader.of(tokens, stop) == read
    assert reader.has_stopped(tokens, stop) == any(each in text for each in stop)
