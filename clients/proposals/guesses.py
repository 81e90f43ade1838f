"""What a column of a file is, seen by its name and its text cells: kind, rounded bounds, words, what is missing."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import date
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sovfed.clients.data.tables.words import ABSENT, FALSE, TRUE, fold
from sovfed.clients.proposals.outliers import Apart, set_apart
from sovfed.clients.proposals.wording import spelt
from sovfed.federation.tasks.columns import LOG, PACKED
from sovfed.federation.tasks.taskfile import EPOCH, LONGEST_WORD
from sovfed.federation.text import steers

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

CONFIRM: Final = "to be confirmed"
MOST_CATEGORIES: Final = 30
LONGEST_CATEGORY: Final = 40
MARGIN: Final = 0.2  # of the values' reach, that bounds go beyond it
OFTEN: Final = 0.05  # missing: a further input says so
FEW_RECORDS: Final = 5  # whose word may tell of a person: what is proposed goes to everybody
MOST_WORDS: Final = 4  # of a category; what has more is a sentence
STRANGE: Final = 0.1  # of the cells: a number for all that, which some cells lack
FEW: Final = 6  # whole numbers that may be the codes of categories
NICE: Final = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
IDS: Final = re.compile(r"(.*[ _-])?(id|nr|no|number|key|uuid|guid|mrn|index)", re.IGNORECASE)
NUMBER: Final = re.compile(r"[<>≤≥]?\s*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", re.ASCII)
LIMITS: Final = "<>≤≥"
TAIL: Final = 3.0  # a log-normal's with a deviation of 0.7; a normal's is 1
LEAST_OF_A_TAIL: Final = 30  # values
LIMIT: Final = "data.detection_limit=limit"
DAY: Final = re.compile(r"(\d{4})([-/.])(\d{1,2})\2(\d{1,2})|(\d{1,2})([./])(\d{1,2})\6(\d{4})", re.ASCII)
TIME: Final = re.compile(r" \d{1,2}:\d{2}(:\d{2})?", re.ASCII)
SERIALS: Final = (date(1990, 1, 1).toordinal(), date(2041, 1, 1).toordinal())  # days that a study may be of
SERIAL_EPOCH: Final = date(1899, 12, 30).toordinal()


@dataclass
class Seen:
    """What is known of a column: its kind (or why it is left out), and the values for a `Column`."""

    kind: str
    reason: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    note: str = CONFIRM
    told: tuple[str, ...] = ()  # what whoever proposes should know, without a value of a record
    middle: float | None = None  # of a column of numbers
    needs: tuple[str, ...] = ()  # settings without which the table is not read
    codes: tuple[str, ...] = ()  # that stand for a missing number
    middles: tuple[float | None, ...] = ()  # of each file by itself, where there are several


def absent(cell: str) -> bool:
    """Whether a cell stands for a missing value."""
    return fold(cell) in ABSENT


def look(name: str, cells: Sequence[str], decimal: str) -> Seen:
    """What a column is, by its name and its cells."""
    present = [cell for cell in cells if not absent(cell)]
    words = spelt(present)
    if not 1 <= len(name) <= LONGEST_WORD or name == PACKED or name.startswith(".") or steers(name):
        return Seen("", f"a name has 1 to {LONGEST_WORD} printable characters, is not 'x' and begins with no dot")
    if not present:
        return Seen("", "empty")
    if len(words) == 1:
        return Seen("", "the same value in every record here")
    missing = len(cells) - len(present)
    if pair := _boolean(words):
        return Seen("boolean", values={**pair, **_mean(missing, len(cells))}, note="")
    if (guess := _numeric(name, present, missing, len(cells), decimal)) is not None:
        return guess
    if (days := _dates(present)) is not None:
        needs = tuple(f"data.date_format={form}" for form in days.forms)
        written = f"{CONFIRM}; its days need {' or '.join(needs)}" if needs else CONFIRM
        told = ("01/02/2026 may be either day of the two: taken as day/month/year",) if days.either else ()
        values = {**_span(days.days), **_mean(missing, len(cells))}
        return Seen("date", values=values, note=written, told=told, needs=needs)
    return _category(present, words, missing)


def _numeric(name: str, present: Sequence[str], missing: int, count: int, decimal: str) -> Seen | None:
    """A number, if nearly all cells that are there read as one; the others are words of this file alone."""
    readable = [cell for cell in present if _numbers([cell], decimal)]
    strange = len(present) - len(readable)
    numbers = _numbers(readable, decimal) if readable and strange <= STRANGE * len(present) else None
    if numbers is None:
        return None
    guess = _number(name, numbers, missing + strange, count)
    if guess.kind and any(cell[0] in LIMITS for cell in readable):
        guess.note += f"; values below or above a limit need {LIMIT}"
        guess.needs += (LIMIT,)
    if guess.kind and strange:
        guess.note += f"; {strange} cells hold another word: data.missing_words says which stand for a missing value"
    return guess


def _category(there: Sequence[str], words: Sequence[str], missing: int) -> Seen:
    if len(words) == len(there):
        return Seen("", "another value in every record: an identifier or free text")
    sentences = any(len(word.split()) > MOST_WORDS for word in words)
    if max(map(len, words)) > LONGEST_CATEGORY or any(map(steers, words)) or sentences:
        return Seen("", "free text")
    if len(words) > MOST_CATEGORIES or len(words) > len(there) / 2:
        return Seen("", f"{len(words)} different words in {len(there)} records: too many categories, or free text")
    rule = {"missing": "category"} if missing else {}
    note, counts = f"{CONFIRM}: are these all the words?", Counter(map(fold, there))
    if rare := sum(counts[fold(word)] < FEW_RECORDS for word in words):
        note += f" {rare} in fewer than {FEW_RECORDS} records here: none about a person?"
    return Seen("category", values={"categories": tuple(words), **rule}, note=note)


def _number(name: str, numbers: Sequence[float], missing: int, count: int) -> Seen:
    all_integers = all(value.is_integer() for value in numbers)
    different = len(set(numbers))
    running = different == len(numbers) and max(numbers) - min(numbers) + 1 == different
    if all_integers and different > 2 and different == len(numbers) and (IDS.fullmatch(name) or running):
        return Seen("", "another whole number in every record: an identifier")
    apart = set_apart(numbers)
    low, high = _beyond(min(apart.rest), max(apart.rest))
    values = {"low": low, "high": high, **_plausible(apart.rest, low, high), **_mean(missing + apart.coded, count)}
    few = all_integers and different <= FEW and max(numbers) < 100
    note = f"{CONFIRM}: or the codes of categories?" if few else CONFIRM
    middle = sorted(apart.rest)[len(apart.rest) // 2]
    if low >= 0 and not few and _has_long_tail(apart.rest):
        values["scaling"], note = LOG, f"{note}; a long tail: scaled by its logarithm"
    codes = tuple(f"{code:g}" for code in apart.codes)
    told = (*_apart(apart), *_counted_days(apart.rest))
    return Seen("number", values=values, note=note, told=told, middle=middle, codes=codes)


def _has_long_tail(numbers: Sequence[float]) -> bool:
    """Whether what is above the middle reaches so much further than what is below, as of lab values and costs."""
    if len(numbers) < LEAST_OF_A_TAIL:
        return False
    least, middle, most = np.quantile(np.asarray(numbers), (0.05, 0.5, 0.95))
    return bool(most - middle > TAIL * max(middle - least, 1e-9 * most))


def _apart(apart: Apart) -> tuple[str, ...]:
    """What stands outside of the proposed bounds, and what to do about it."""
    codes = ", ".join(f"{code:g}" for code in apart.codes)
    coded = f"{apart.coded} cells hold {codes}, taken for a missing value: data.missing_words=[{codes}] says so"
    slips = f"{apart.slips} values lie far from all others and outside of the proposed bounds: look at them"
    return (*([coded] if apart.codes else []), *([slips] if apart.slips else []))


def _mean(missing: int, count: int) -> dict[str, Any]:
    if not missing:
        return {}
    return {"missing": "mean", "indicator": True} if missing > OFTEN * count else {"missing": "mean"}


def _boolean(words: Sequence[str]) -> dict[str, Any]:
    """The words for 0 and 1, if that is what they all are."""
    no, yes = ([word for word in words if fold(word) in meaning] for meaning in (FALSE, TRUE))
    return {"false": (no[0],), "true": (yes[0],)} if no and yes and len(no) + len(yes) == len(words) else {}


def _numbers(cells: Sequence[str], decimal: str) -> list[float] | None:
    numbers = []
    for cell in cells:
        text = cell.replace(decimal, ".") if decimal != "." else cell
        if not NUMBER.fullmatch(text) or (len(text) > 1 and text[0] == "0" and text.isdigit()):  # 007 is a code
            return None
        numbers.append(float(text.lstrip("<>≤≥ ")))
    return numbers if all(map(math.isfinite, numbers)) and max(map(abs, numbers)) <= 1e29 else None


@dataclass(frozen=True)
class Days:
    """Days since 1970; how those are written that are not year-month-day; whether slashes leave the month open."""

    days: list[int]
    forms: tuple[str, ...]
    either: bool = False


def _dates(cells: Sequence[str]) -> Days | None:
    """The days in `cells`; None if one is none. Where there are slashes the day is first, or else the month in all."""
    day_first, month_first = _days(cells, month_first=False), _days(cells, month_first=True)
    if day_first is None:
        return month_first
    return replace(day_first, either=month_first is not None and any("%d/%m/" in form for form in day_first.forms))


def _days(cells: Sequence[str], *, month_first: bool) -> Days | None:
    days, forms = list[int](), dict[str, None]()
    for cell in cells:
        match = DAY.match(cell)
        if match is None:
            return None
        year, between, month, day, first, mark, second, own_year = match.groups()
        if own_year and mark == "/" and month_first:
            first, second = second, first
        try:
            days.append(date(*map(int, (year, month, day) if year else (own_year, second, first))).toordinal() - EPOCH)
        except ValueError:
            return None
        if form := _form(between, mark, month_first, plain=len(f"{month}{day}") == 4):
            time = TIME.fullmatch(cell, match.end())
            forms[form + ("" if time is None else " %H:%M:%S" if time[1] else " %H:%M")] = None
    return Days(days, tuple(forms))


def _form(between: str | None, mark: str | None, month_first: bool, *, plain: bool) -> str:
    """The date_format of days with the year first, `between` their parts, or last; "" of 2026-01-31, if so `plain`."""
    if between is not None:
        return "" if between == "-" and plain else f"%Y{between}%m{between}%d"
    return "%d.%m.%Y" if mark == "." else "%m/%d/%Y" if month_first else "%d/%m/%Y"


def _span(days: Sequence[int]) -> dict[str, int]:
    """Bounds of a date, rounded to decades beyond the days."""
    return {"low": _january(min(days), -1), "high": _january(max(days), 2) - 1}


def _counted_days(numbers: Sequence[float]) -> tuple[str, ...]:
    """What to say where all of a column's numbers may be days as Excel counts them."""
    first, last = (day - SERIAL_EPOCH for day in SERIALS)
    if not all(first <= number < last for number in numbers):
        return ()
    ends = _span([int(number) + SERIAL_EPOCH - EPOCH for number in numbers])
    low, high = (date.fromordinal(day + EPOCH) for day in ends.values())
    return (
        f'may be days as Excel counts them: then {{kind: date, low: "{low}", high: "{high}"}} in the task, and '
        "data.date_format=excel where the table is read",
    )


def numbers_of(cells: Sequence[str], decimal: str) -> npt.NDArray[np.float64]:
    """The numbers of a column, NaN where a cell is none."""
    read = (_numbers([cell], decimal) for cell in cells)
    return np.array([np.nan if number is None else number[0] for number in read])


def days_of(cells: Sequence[str]) -> npt.NDArray[np.float64]:
    """The days since 1970 of a column, NaN where a cell is none."""
    read = (_dates([cell]) for cell in cells)
    return np.array([np.nan if days is None else float(days.days[0]) for days in read])


def _january(days: int, decades: int) -> int:
    """The 1st of January that begins the decade of `days` since 1970, some `decades` on; -1: its own."""
    year = date.fromordinal(days + EPOCH).year // 10 * 10 + 10 * max(0, decades - 1)
    return date(min(max(year, 1), 9990), 1, 1).toordinal() - EPOCH


def _beyond(low: float, high: float) -> tuple[float, float]:
    """Round bounds outside of [low, high], by a fifth of what they reach at least; 0 where nothing is below it."""
    reach = MARGIN * max(abs(low), abs(high), 1e-9)
    least = 0.0 if low >= 0 else -_nice(-low + reach)
    greatest = 0.0 if high <= 0 else _nice(high + reach)
    return least, greatest


def _nice(value: float, *, up: bool = True) -> float:
    """The next round number at or above (or below) `value` > 0."""
    size = 10.0 ** math.floor(math.log10(value))
    steps = [step for step in NICE if (step * size >= value if up else step * size <= value * (1 + 1e-9))]
    chosen = (steps[0] if steps else NICE[-1]) if up else (steps[-1] if steps else NICE[0])
    return float(f"{chosen * size:.6g}")


def _plausible(numbers: Sequence[float], low: float, high: float) -> dict[str, Any]:
    middle = sorted(numbers)[len(numbers) // 2]
    return {} if min(numbers) < 0 or len(set(numbers)) <= FEW else plausible(middle, low, high)


def plausible(middle: float, low: float, high: float) -> dict[str, Any]:
    """Where the middle of another institution's values may lie, which tells another unit; of positive numbers only.

    It lies within the bounds."""
    if middle <= 0:
        return {}
    return {"plausible": (max(low, _nice(middle / 2, up=False)), min(high, _nice(middle * 2)))}
