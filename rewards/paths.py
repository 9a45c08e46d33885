"""What a setting that names a file means: it is relative to the recipe's folder, not to where a process happens to run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ValidationInfo


def _beside_the_recipe(path: str, info: ValidationInfo) -> str:
    return os.path.normpath((info.context or {}).get("base", Path()).resolve() / Path(path).expanduser())


def _folder_or_id(name: str, info: ValidationInfo) -> str:
    is_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    return _beside_the_recipe(name, info) if is_local else name


FilePath = Annotated[str, AfterValidator(_beside_the_recipe)]
ModelPath = Annotated[str, AfterValidator(_folder_or_id)]
"""A folder (./model, /models/x), or a hub id, which has no such mark and at most one slash."""
