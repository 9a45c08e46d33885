"""A source keeps the rows whose prompt matches, and still has as many as were asked for."""

from __future__ import annotations

import re
from pathlib import Path

from grpo.config import DataSource, Tags
from grpo.data.sources import Sources

SETTINGS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def test_only_matching_prompts_are_kept_and_the_number_of_rows_holds() -> None:
    source = DataSource(reasoning_gym="chain_sum", settings=SETTINGS, rows=30, question="{expression}", only=r"^\d \+ \d$")
    rows = Sources({"sums": source}, Path("."), Tags()).load("sums").rows
    assert len({row["prompt"] for row in rows}) == 30
    assert all(re.search(r"^\d \+ \d$", row["prompt"]) for row in rows)
