"""The words of a column in several files: each once whatever its case, and files that have other ones are told.

What one file's codes mean in another's words is not guessed: the proposal has the words of most files, and says of the
others what to write beside them.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from sovfed.clients.data.beside import ENDING
from sovfed.clients.data.tables.words import ABSENT, fold

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from sovfed.clients.proposals.sniffing import Sheet

MOST_CODES: Final = 6  # different ones, from which on whole numbers are numbers
LONGEST_CODE: Final = 2  # digits
SHOWN: Final = 6  # words of a line


def spelt(cells: Sequence[str]) -> tuple[str, ...]:
    """The different words of `cells`, sorted, each as it is written most often: capitals and spaces do not count."""
    spellings = Counter(cells)
    best = dict[str, str]()
    for word in sorted(spellings):
        key = fold(word)
        if key not in best or spellings[word] > spellings[best[key]]:
            best[key] = word
    return tuple(sorted(best.values()))


def coded_apart(name: str, sheets: Sequence[Sheet]) -> tuple[list[Sheet], list[str]]:
    """The `sheets` whose column has words, or codes, as most have; and a line for each of the others."""
    words = {sheet.path: _words(sheet, name) for sheet in sheets}
    coded = {path for path, own in words.items() if own and len(own) <= MOST_CODES and all(map(_is_code, own))}
    worded = {path for path, own in words.items() if own and not any(map(_numeric, own))}
    if not coded or not worded:
        return list(sheets), []
    differing = coded if len(coded) <= len(worded) else worded
    usual = [sheet for sheet in sheets if sheet.path not in differing]
    return usual, _told(name, differing, usual, words)


def classes_of(name: str, sheets: Sequence[Sheet]) -> tuple[list[Sheet], list[str]]:
    """The `sheets` that have the same two words, as most have; and a line for each of the others."""
    words = {sheet.path: _words(sheet, name) for sheet in sheets}
    counts = Counter(frozenset(own) for own in words.values() if len(own) > 1)
    if len(counts) < 2:
        return list(sheets), []
    pair = max(counts, key=lambda own: (counts[own], not any(map(_is_code, own))))
    differing = {path for path, own in words.items() if not own.keys() <= pair}
    usual = [sheet for sheet in sheets if sheet.path not in differing]
    return usual, _told(name, differing, usual, words)


def _words(sheet: Sheet, name: str) -> dict[str, str]:
    """The words of a column, by what they are compared as."""
    return {fold(cell): cell for cell in spelt(sheet.column_like(name)) if fold(cell) not in ABSENT}


def _is_code(word: str) -> bool:
    return word.isdecimal() and len(word) <= LONGEST_CODE


def _numeric(word: str) -> bool:
    return any(letter.isdecimal() for letter in word) and not any(letter.isalpha() for letter in word)


def _told(
    name: str, differing: set[Path], usual: Sequence[Sheet], words: Mapping[Path, Mapping[str, str]]
) -> list[str]:
    expected = spelt([word for sheet in usual for word in words[sheet.path].values()])
    return [_line(name, path, tuple(words[path].values()), expected) for path in words if path in differing]


def _line(name: str, path: Path, own: Sequence[str], expected: Sequence[str]) -> str:
    values = ", ".join(f'"{word}": …' for word in own[:SHOWN])
    return (
        f"{path.name} says {', '.join(own[:SHOWN])} where the others say {', '.join(expected[:SHOWN])}: "
        f"which is which is not guessed. Write beside it {path.stem}{ENDING}, "
        f"'data: {{mapping: {path.stem}-words.yml}}', and {path.stem}-words.yml, "
        f"'columns: {{{name}: {{values: {{{values}}}}}}}', a word of the others for each"
    )
