"""Which algorithms a recipe can name."""

from grpo.algorithm.table import TABLE

NAMES: tuple[str, ...] = tuple(TABLE)
