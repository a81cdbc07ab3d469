"""Figures that the suite measures on its way and prints at its end; they decide no test."""

from collections.abc import Sequence

notes: list[str] = []


def note(text: str) -> None:
    notes.append(text)


def burst(arrivals: Sequence[float], per_second: float) -> float:
    """The most requests in any window between two arrivals, less what the rate gives meanwhile."""
    ordered = sorted(arrivals)
    highest, lowest_level = 0.0, float("inf")
    for index, at in enumerate(ordered):
        level = index - at * per_second
        lowest_level = min(lowest_level, level)
        highest = max(highest, level - lowest_level + 1)
    return highest
