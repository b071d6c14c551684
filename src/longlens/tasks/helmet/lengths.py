"""HELMET's nominal lengths, and how much of a data set it puts into each."""

from __future__ import annotations

from collections.abc import Mapping

from longlens.errors import UserError

# generate_configs.py, lengths_mapping: {"4k": 4096, "8k": 8192, "16k": 16384, "32k": 32768, "64k": 65536, "128k": …}
NOMINAL = (4096, 8192, 16384, 32768, 65536, 131072)


def by_length(*sizes: int) -> dict[int, int]:
    """One size for each nominal length."""
    return dict(zip(NOMINAL, sizes, strict=True))


def nominal_length(task: str, length: int | None, sizes: Mapping[int, int], what: str) -> int:
    """The largest nominal length that is at most ``length``.

    Args:
        task: Which task asks, for messages.
        length: Tokens, or None.
        sizes: Size by nominal length.
        what: The task's setting that gives a size instead.

    Raises:
        UserError: There is no length, or the smallest nominal one is larger.
    """
    fitting = [nominal for nominal in sizes if length is not None and nominal <= length]
    if not fitting:
        raise UserError(
            f"{task}: length={length}; expected at least {min(sizes)}, the smallest length that HELMET has data for "
            f"({what} by length: {', '.join(f'{size} for {nominal}' for nominal, size in sizes.items())}); or give "
            f"{what}= itself"
        )
    return max(fitting)
