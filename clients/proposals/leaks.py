"""Columns that tell nearly alone what is to be learnt: often they are written after it, and not known beforehand."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

import numpy as np

from sovfed.clients.data.tables.words import TRUE, fold
from sovfed.clients.proposals.guesses import Seen, absent, days_of, numbers_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

NEARLY_ALONE: Final = 0.95  # of a rank AUC, or of a correlation's size
FEWEST: Final = 20  # records, fewer of which say nothing
ENOUGH: Final = 10  # records with a word, fewer of which have no mean of their own


def telling(
    inputs: Mapping[str, Seen], learnt: Mapping[str, Seen], cells: Mapping[str, Sequence[str]], decimal: str
) -> list[str]:
    """A line for each input that ranks a column to be learnt, or goes with it, nearly without fault."""
    lines = []
    for target, about in learnt.items():
        truth, number = _truth(about, cells[target], decimal)
        known = np.isfinite(truth)
        if known.sum() < FEWEST or np.ptp(truth[known]) == 0:
            continue
        measure = _correlation if number else _area
        for name, seen in inputs.items():
            score = max(measure(way[known], truth[known]) for way in _scores(seen, cells[name], truth, decimal))
            if score > NEARLY_ALONE:
                called = "correlation" if number else "AUC"
                lines.append(f"'{name}' tells '{target}' nearly alone ({called} {score:.2f}): is it known beforehand?")
    return lines


def _truth(seen: Seen, cells: Sequence[str], decimal: str) -> tuple[Floats, bool]:
    """What is to be learnt as numbers, NaN where it is missing, and whether it is a number; of classes, the rarest."""
    if seen.kind == "number":
        return numbers_of(cells, decimal), True
    words = [None if absent(cell) else fold(cell) for cell in cells]
    if seen.kind == "boolean":
        return np.array([np.nan if word is None else float(word in TRUE) for word in words]), False
    counts = {word: words.count(word) for word in set(words) - {None}}
    rarest = min(counts, key=lambda word: (counts[word], word or ""))
    return np.array([np.nan if word is None else float(word == rarest) for word in words]), False


def _scores(seen: Seen, cells: Sequence[str], truth: Floats, decimal: str) -> list[Floats]:
    """Ways to rank records by a column: by its numbers or days, by its words' means, by whether it is there."""
    present = np.array([float(not absent(cell)) for cell in cells])
    if seen.kind in ("boolean", "category"):
        return [_word_means([fold(cell) for cell in cells], truth)]
    if seen.kind not in ("number", "date"):
        return [present]
    values = numbers_of(cells, decimal) if seen.kind == "number" else days_of(cells)
    known = np.isfinite(values)
    return [present, np.where(known, values, np.median(values[known]) if known.any() else 0.0)]


def _word_means(words: Sequence[str], truth: Floats) -> Floats:
    """The mean of `truth` over the records with the same word; over all of them where few have it."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, word in enumerate(words):
        rows[word].append(row)
    means = np.full(len(words), np.nanmean(truth))
    for own in rows.values():
        known = truth[own][np.isfinite(truth[own])]
        if len(known) >= ENOUGH:
            means[own] = known.mean()
    return means


def _area(scores: Floats, truth: Floats) -> float:
    """The AUC of `scores` for `truth` 0 or 1, or of their reverse: from 0.5 to 1."""
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    ones = truth == 1
    positives, negatives = int(ones.sum()), int((~ones).sum())
    area = (ranks[ones].sum() - positives * (positives + 1) / 2) / (positives * negatives)
    return float(max(area, 1 - area))


def _correlation(scores: Floats, truth: Floats) -> float:
    """The size of Pearson's correlation, 0 where `scores` are all alike."""
    if np.ptp(scores) == 0:
        return 0.0
    return float(abs(np.corrcoef(scores, truth)[0, 1]))
