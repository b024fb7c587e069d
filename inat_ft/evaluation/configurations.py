"""Which settings differ between the classifiers of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from inat_ft.records import RunRecord

_IGNORED = ("name", "seed", "track", "compute", "data.root")
UNKNOWN = "unknown"


def differing_settings(records: Sequence[RunRecord]) -> dict[str, tuple[str, ...]]:
    """Return, for each configuration key whose value is not the same in all records, its value in each of them.

    A record without a configuration has `unknown` everywhere; a key that a configuration lacks has an empty value.
    """
    flat = [_flatten(record.config) for record in records]
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = {
        key: tuple(values.get(key, "") if values else UNKNOWN for values in flat)
        for key in keys
        if not any(key == ignored or key.startswith(f"{ignored}.") for ignored in _IGNORED)
    }
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= _flatten(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = _text(f"{prefix}{key}", value)
    return found


def _text(key: str, value: Any) -> str:
    if value is None:
        return "default"
    if key == "data.split":
        return PurePosixPath(str(value).replace("\\", "/")).name
    return f"{value:g}" if isinstance(value, float) else str(value)
