"""The ledger of a test set: each evaluation on it is recorded beside the manifest."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

from inat_ft.errors import InatFtError
from inat_ft.locks import FileLock


def ledger_file(manifest: Path) -> Path:
    """Return the file that records the evaluations on a manifest's test set."""
    return manifest.with_name(f"{manifest.name}.looks.jsonl")


def past_test_evaluations(manifest: Path, fingerprint: str) -> list[dict[str, object]]:
    """Return the evaluations on the test set with this fingerprint, the oldest first. Damaged lines are skipped."""
    try:
        lines = ledger_file(manifest).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and entry.get("test") == fingerprint:
            found.append(entry)
    return found


def record_test_evaluation(manifest: Path, fingerprint: str, run: str, accuracy: float) -> int:
    """Add an evaluation, and return how many there are with it. Raises InatFtError when it cannot be written."""
    file, now = ledger_file(manifest), datetime.now(UTC).isoformat(timespec="seconds")
    entry = {"when": now, "run": run, "accuracy": accuracy, "test": fingerprint}
    try:
        with FileLock(f"{file}.lock"), file.open("a", encoding="utf-8") as out:
            number = len(past_test_evaluations(manifest, fingerprint)) + 1
            out.write(json.dumps(entry) + "\n")
            out.flush()
            os.fsync(out.fileno())
    except OSError as error:
        raise InatFtError(f"cannot record the evaluation of the test set in {file}: {error.strerror}") from error
    return number
