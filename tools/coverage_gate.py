"""Report the branch coverage of folders, and fail if one of them is too low.

    python -m tools.coverage_gate inat_ft=95 plugins=95

Reads the data of the last `pytest --cov`. The minimum is in percent of the branches of conditions and loops.
"""

import json
import subprocess
import sys
from typing import Any


def branch_coverage(report: dict[str, Any], folder: str) -> float:
    """Return the covered share of the branches in a folder, in percent. report: as `coverage json` writes it."""
    found = [file["summary"] for name, file in report["files"].items() if name.startswith(f"{folder}/")]
    return 100 * sum(each["covered_branches"] for each in found) / sum(each["num_branches"] for each in found)


def main(minima: list[str]) -> None:
    """Print the shares; exit with code 1 if one is below its minimum."""
    command = [sys.executable, "-m", "coverage", "json", "--quiet", "-o", "-"]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    failed = False
    for folder, _, minimum in (each.partition("=") for each in minima):
        share = branch_coverage(report, folder)
        print(f"{folder}/: {share:.1f}% of the branches are covered, {minimum}% are required")
        failed |= share < float(minimum)
    sys.exit(failed)


if __name__ == "__main__":
    main(sys.argv[1:])
