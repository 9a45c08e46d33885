"""Which text is a completion's, and at which tokens does it end? Said once, so that every engine says the same."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any


def end_ids(folder: Path) -> list[int]:
    """The end tokens that a model's folder names: those of generation_config.json, or of config.json where that names none."""
    config, generation = (_read(folder / name) for name in ("config.json", "generation_config.json"))
    text_config = config.get("text_config") or {}
    for named in (generation.get("eos_token_id"), config.get("eos_token_id"), text_config.get("eos_token_id")):
        if named is not None:
            return [named] if isinstance(named, int) else list(named)
    return []


class CompletionText:
    """From token ids to the text that rewards read: without special tokens, but with those in ``keep``, such as a recipe's tags.

    ``tokenizer`` decodes ids, ``added`` are its added tokens by id.
    """

    def __init__(self, tokenizer: Any, added: Mapping[int, Any], keep: Collection[str]):
        self._decode = tokenizer.decode
        self._left_out = {number for number, token in added.items() if token.special and token.content.strip() not in keep}

    def of(self, tokens: Sequence[int], stop: Sequence[str] = ()) -> str:
        """The text, up to the end of the first stop string in it."""
        text = self._decode([token for token in tokens if token not in self._left_out], skip_special_tokens=False)
        return text[: min((at + len(each) for each in stop if (at := text.find(each)) >= 0), default=len(text))]

    def has_stopped(self, tokens: Sequence[int], stop: Sequence[str]) -> bool:
        """Is one of the stop strings in what was written? Special tokens count as the text that stands for them."""
        return bool(stop) and any(each in self._decode(list(tokens), skip_special_tokens=False) for each in stop)


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
