"""Are holes known in what is installed, or secrets in what is published? Exit 0: neither, and all was looked at.

    python scripts/audit.py [--only secrets|holes]

pip-audit compares constraints.txt with the advisories of PyPI, and detect-secrets reads every file under version control; uv runs both in
environments of their own. A package whose advisories could not be had is not taken for a sound one: exit 1. A line that is no secret says so:
`# pragma: allowlist secret`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
AUDITOR, SCANNER = "pip-audit==2.10.0", "detect-secrets==1.5.0"
SHOWN = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uv", default=shutil.which("uv") or "uv", help="the uv command (default: %(default)s)")
    parser.add_argument("--only", choices=("secrets", "holes"), help="look for these alone")
    arguments = parser.parse_args()
    problems = []
    if arguments.only != "holes":
        problems += secrets(arguments.uv, ROOT)
    if arguments.only != "secrets":
        problems += holes(arguments.uv, ROOT / "constraints.txt")
    looked_for = [what for what in ("secrets", "holes") if arguments.only in (None, what)]
    print("\n".join(problems) or f"audit: no {' and no '.join(looked_for)}")
    return 1 if problems else 0


def secrets(uv: str, folder: Path) -> list[str]:
    """Lines of tracked files of ``folder`` that look like a secret."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=folder, capture_output=True, text=True, check=True).stdout.split("\0")
    files = [file for file in tracked if file and (folder / file).is_file()]
    found = run_tool(uv, SCANNER, ["detect-secrets", "scan", *files], folder)
    if isinstance(found, str):
        return [f"secrets: {found}"]
    return [
        f"secrets: {file}:{line['line_number']}: {line['type']}; take it out, and out of the history, or write `# pragma: allowlist secret` there"
        for file, lines in found["results"].items()
        for line in lines
    ]


def holes(uv: str, constraints: Path) -> list[str]:
    """What pip-audit has against the pinned packages."""
    options = ["--requirement", str(constraints), "--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    found = run_tool(uv, AUDITOR, ["pip-audit", *options], constraints.parent)
    return [f"holes: {found}"] if isinstance(found, str) else told_of(found["dependencies"])


def told_of(packages: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each hole, and one for the packages of which nothing is known."""
    lines = [
        f"holes: {package['name']} {package['version']}: {hole['id']}, mended in {', '.join(hole['fix_versions']) or 'no version yet'}"
        for package in packages
        for hole in package.get("vulns", [])
    ]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    if unknown:
        some = ", ".join(unknown[:SHOWN]) + (", ..." if len(unknown) > SHOWN else "")
        lines.append(
            f"holes: advisories of {len(unknown)} of {len(packages)} packages could not be had ({some}), so nothing is known of them; "
            "is this index without PyPI's advisories, or offline?"
        )
    return lines


def run_tool(uv: str, package: str, command: Sequence[str], folder: Path) -> Any:
    """What it printed as JSON, whatever its exit code; a line that says why there is none."""
    try:
        done = subprocess.run([uv, "tool", "run", "--from", package, *command], cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{uv} cannot be run ({error.strerror}); make setup installs it"
    try:
        return json.loads(done.stdout)
    except ValueError:
        return f"{package} gave no result: {(done.stderr.strip() or 'nothing said').splitlines()[-1]}"


if __name__ == "__main__":
    sys.exit(main())
