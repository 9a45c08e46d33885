"""The toolkit's front door: `run_recipe`, the version, and a check that nothing hides the packages it stands on. Imports nothing heavy."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grpo.pipeline.run import run_recipe

__version__ = "0.1.0"
__all__ = ["__version__", "run_recipe"]


def _check_sibling(name: str) -> None:
    """Raise ImportError where `import {name}` would find anything but the package that was installed beside this one.

    `rewards` and `rollout` are names that a user may well give to a file of their own, and Python looks into the folder of the script (or,
    with -c and -m, into the current one) first.
    """
    ours = Path(__file__).resolve().parent.parent / name
    try:
        spec = find_spec(name)
    except ValueError:  # a module without a spec holds the name: __main__ posing as it, or one made by hand
        spec = None
        hidden_by: str | None = "a module that is already loaded"
    else:
        folders = [Path(folder).resolve() for folder in (spec.submodule_search_locations or [])] if spec else []
        if folders[:1] == [ours]:
            return
        hidden_by = (spec.origin or ", ".join(map(str, folders))) if spec else None
    if hidden_by is None:
        raise ImportError(f"grpo needs the package {name!r}, in {ours}, and it is not there; install grpo-toolkit again", name=name)
    raise ImportError(
        f"grpo needs its own package {name!r}, in {ours}, but {hidden_by} hides it; rename that file, "
        f"or start from another folder (a reward of your own may keep any file name: a recipe loads it by its path)",
        name=name,
        path=str(hidden_by),
    )


for _name in ("rewards", "rollout"):
    _check_sibling(_name)


def __getattr__(name: str) -> Any:
    if name == "run_recipe":
        from grpo.pipeline.run import run_recipe

        return run_recipe
    raise AttributeError(f"module 'grpo' has no attribute {name!r}")
