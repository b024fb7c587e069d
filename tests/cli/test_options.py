"""The files that `make generate` writes are up to date."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tools import generate


@pytest.mark.parametrize(
    ("file", "expected"),
    generate.FILES.items(),
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_generated_file_is_up_to_date(file: Path, expected: Callable[[], str]) -> None:
    assert file.read_text(encoding="utf-8") == expected(), f"{file.name} is out of date; run: make generate"
