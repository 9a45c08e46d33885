"""A model that is nowhere is said to be nowhere, with what to do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest

from grpo.errors import RecipeError
from grpo.pipeline.run import _model


@pytest.mark.parametrize("ref", ["nobody/no-such-model", "not a name at all"])
def test_a_model_that_cannot_be_had_is_named_with_what_to_do(ref: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        RecipeError, match=f"model '{ref}' is no folder here and could not be had from the hub: .*; write the path of a folder"
    ):
        _model(ref, "base", SimpleNamespace(context=SimpleNamespace(base=tmp_path)))
