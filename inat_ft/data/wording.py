"""Numbers as a sentence has them."""


def counted(number: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size_text(num_bytes: float) -> str:
    """A size with the unit that suits it: `12.0 KiB`, `3.5 GiB`."""
    unit, least = next(((u, n) for u, n in (("GiB", 2**30), ("MiB", 2**20)) if num_bytes >= n), ("KiB", 2**10))
    return f"{num_bytes / least:,.1f} {unit}"
