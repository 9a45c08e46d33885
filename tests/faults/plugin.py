"""`pytest --fault-rows` runs the tests of every fault, and those marked so, and ends with a table: number, fault, promise, tests, result."""

from __future__ import annotations

from collections import defaultdict

import pytest

from tests.faults.rows import ROWS, FaultRow

NODES = frozenset(node for row in ROWS for node in row.node_ids())


class FaultRows:
    """What came of each test: (how it ended, why) of all its parameters."""

    def __init__(self) -> None:
        self.ends: dict[str, list[tuple[str, str]]] = defaultdict(list)

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        chosen = [item for item in items if function_of(item.nodeid) in NODES or item.get_closest_marker("faults")]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
        items[:] = chosen

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            why = report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else ""
            self.ends[function_of(report.nodeid)].append((report.outcome, why))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("faults")
        for row in ROWS:
            terminalreporter.write_line(f"{row.number:2}  {self.result(row):14}  {row.fault}: {row.promise}")
            terminalreporter.write_line("    " + ", ".join(f"{node.removeprefix('tests/')} {self.count(node)}" for node in row.node_ids()))

    def result(self, row: FaultRow) -> str:
        """held: all tests passed; FAILED: one did not; else what is missing to know."""
        ends = [self.ends[node] for node in row.node_ids()]
        if any(end == "failed" for of_test in ends for end, _ in of_test):
            return "FAILED"
        if not all(of_test and all(end == "passed" for end, _ in of_test) for of_test in ends):
            return "partly held" if any(end == "passed" for of_test in ends for end, _ in of_test) else "not run"
        return "held"

    def count(self, node: str) -> str:
        """3 passed; 1 skipped: needs ...; not run."""
        ends = self.ends[node]
        counts = [
            f"{sum(end == name for end, _ in ends)} {name}"
            for name in ("passed", "failed", "skipped")
            if any(end == name for end, _ in ends)
        ]
        whys = dict.fromkeys(why for _, why in ends if why)
        return f"({', '.join(counts) or 'not run'}{': ' + '; '.join(whys) if whys else ''})"


def function_of(node_id: str) -> str:
    return node_id.partition("[")[0]
