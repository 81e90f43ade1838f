"""A language model's held-out text in parts: what stands literally in some ministry's training text, and by era."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from sovfed.clients.data.jsonl import Jsonl
from sovfed.clients.models.passages import apart, copied_tokens, nats_by_group
from sovfed.clients.training.local import LocalTraining

if TYPE_CHECKING:
    from sovfed.clients.data import Indices
    from sovfed.clients.data.token_store import Store
    from sovfed.clients.data.tokens import Windows
    from sovfed.federation.tasks import Task
    from sovfed.federation.tasks.tokenizer import Tokenizer
    from sovfed.simulations.api import Result

DATES: Final = ("promulgated", "issued")  # keys of a line, the first that there is
ERAS: Final[Mapping[str, int]] = {"before_1980": 0, "1980_to_2004": 1980, "from_2005": 2005}
PARTS: Final = 2 * (len(ERAS) + 1)  # of each era, and of what has no date: new and copied
DRAWINGS: Final = 2_000
Floats = npt.NDArray[np.float64]
Groups = Mapping[str, "Indices"]  # by site, of each place of its store: twice the era, and one more if copied


def groups_of(tokenizer: Tokenizer, sites: Mapping[str, Windows], files: Mapping[str, Path]) -> Groups:
    """What part of the text each token of the tested documents is in; the training text is that of all sites."""
    tested = [(windows.store, np.unique(windows.documents[windows.test])) for windows in sites.values()]
    copied = copied_tokens(tokenizer, tested, [windows.store for windows in sites.values()])
    return {
        site: 2 * np.repeat(_eras(years(files[site]), windows.store), np.diff(windows.store.starts)) + flags
        for (site, windows), flags in zip(sites.items(), copied, strict=True)
    }


def apart_figures(name: str, result: Result, sites: Mapping[str, Windows], groups: Groups) -> dict[str, float]:
    """Bits per byte of the model of `result` on each part of all sites' tested text, as figures of `name`."""
    sums = sum(_sums(result.task, windows, result, groups[site]) for site, windows in sites.items())
    by_era = np.asarray(sums).reshape(-1, 2, 2)
    whole = apart(by_era.sum(0))
    figures = {f"{name}_bpb_copied": whole.copied, f"{name}_bpb_new": whole.new, "copied_share": whole.copied_share}
    for era, parts in zip(ERAS, by_era, strict=False):
        told = apart(parts)
        figures |= {f"{name}_bpb_copied_{era}": told.copied, f"{name}_bpb_new_{era}": told.new}
        figures |= {f"copied_share_{era}": told.copied_share}
    return {name: figure for name, figure in figures.items() if figure is not None}


def years(file: Path) -> list[int | None]:
    """The year in which the law of each line was made; None where it does not say."""
    return [_year(line) for _, line in Jsonl(file, ()).objects()]


def by_document(result: Result, windows: Windows) -> Floats:
    """Nats of the model of `result` on each tested document of `windows`, and its bytes [documents, 2]."""
    tested = np.unique(windows.documents[windows.test])
    groups = np.full(len(windows.store.tokens), -1)
    for number, document in enumerate(tested.tolist()):
        groups[windows.store.starts[document] : windows.store.starts[document + 1]] = number
    training = LocalTraining(result.task, windows, site="", device="cpu")
    return nats_by_group(training, windows, result.vector, result.scale, groups, len(tested))


def resampled(first: Floats, second: Floats, times: int = DRAWINGS, seed: int = 0) -> Floats:
    """Bits per byte of the first model over those of the second [1 + times], each on the same documents.

    The first is that of the documents as they are, those behind it are of as many drawn of them, with replacement: a
    paired bootstrap (Efron and Tibshirani 1993, chapter 8).
    """
    count = len(first)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), times)
    weights = np.concatenate([np.ones((1, count)), drawn])
    nats: Floats = (weights @ first[:, 0]) / (weights @ second[:, 0])
    return nats


def _year(line: Mapping[str, object]) -> int | None:
    date = next((str(line[key]) for key in DATES if line.get(key)), "")
    return int(date[:4]) if date[:4].isdecimal() else None


def _eras(made: Sequence[int | None], store: Store) -> Indices:
    """The era of each document; the one behind the last for no date, or where lines were left out of the store."""
    none = len(ERAS)
    if len(made) != len(store.persons):
        return np.full(len(store.persons), none)
    begins = list(ERAS.values())
    return np.array([none if year is None else int(np.searchsorted(begins, year, "right")) - 1 for year in made])


def _sums(task: Task, windows: Windows, result: Result, groups: Indices) -> npt.NDArray[np.float64]:
    training = LocalTraining(task, windows, site="", device="cpu")
    return nats_by_group(training, windows, result.vector, result.scale, groups, PARTS)
