"""A task.yaml proposed from an institution's own table: kinds, bounds, categories, missing values, what to learn.

Of the records it tells the words of categories and rounded bounds, nothing else; whoever reads the proposal confirms
them. What cannot be learnt from (identifiers, free text, constants) is left out and named with the reason.
"""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sovfed.clients.data.beside import ENDING
from sovfed.clients.data.tables.header import like_persons
from sovfed.clients.data.tables.words import fold
from sovfed.clients.proposals.declared import as_declared, settings_for
from sovfed.clients.proposals.guesses import CONFIRM, Seen, absent, look, plausible
from sovfed.clients.proposals.imaging import pictured
from sovfed.clients.proposals.leaks import telling
from sovfed.clients.proposals.sniffing import Sheet, files_of, read_sheet, together
from sovfed.clients.proposals.wording import classes_of, coded_apart
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import ConfigError, DataError
from sovfed.federation.schema import bind, nearest
from sovfed.federation.tasks.columns import Column
from sovfed.federation.tasks.families import CNN, MLP, Family, Linear
from sovfed.federation.tasks.targets import Target
from sovfed.federation.tasks.taskfile import ONE_ROW, TaskFile, Training, to_text
from sovfed.federation.text import steers

if TYPE_CHECKING:
    from collections.abc import Sequence

AS_FOUND: Final = DataConfig()
UNLIKE: Final = 1.8  # times as high: two units of one thing differ by more, two clinics' patients hardly
BY_ITSELF: Final = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be")  # encodings that a file tells of itself
ENOUGH: Final = 1_000  # records, from which on a perceptron is proposed
LEARNT: Final = re.compile(
    r"target|label|outcome|class|y|diagnosis|disease|ill|died|death|event|readmitted", re.IGNORECASE
)


SHOWN: Final = 4  # files that are named
EMPTY: Final = (
    "what a file lacks can be an input all the same: with missing: mean (of words: category) in the task, and an empty "
    "column of that name there"
)


@dataclass(frozen=True)
class Proposal:
    """The text of a task.yaml, what there is to tell beside it, a line each, and how the first table is read."""

    text: str
    told: tuple[str, ...]
    first: Path
    settings: tuple[str, ...] = ()  # of the group data, without which the tables are not read, or not for private runs


def propose(
    name: str, path: Path | Sequence[Path], targets: Sequence[str] = (), *, event: str = "", person: str = "",
    written: DataConfig = AS_FOUND,
) -> Proposal:  # fmt: skip
    """The proposal from a table (CSV, Parquet), from several or a folder of them: what it says covers them all.

    `written` says how their cells are, and over it the file of own settings beside a table. Raises DataError if one
    cannot be read, ConfigError for a wrong name.
    """
    files = files_of([path] if isinstance(path, Path) else path)
    own = [settings_for(file, written) for file in files]
    sheets = [as_declared(read_sheet(file, how), how) for file, (how, _) in zip(files, own, strict=True)]
    if empty := [read.path.name for read in sheets if not read.rows]:
        raise DataError(f"{empty[0]}: no records below the header")
    _require_in_all(sheets, [*targets, *([event] if event else []), *([person] if person not in ("", "row") else [])])
    sheet, lacking = together(sheets)
    learnt = [_known(sheet, target, "--target") for target in targets]
    learnt += [_known(sheet, event, "--event")] if event else []
    whose, whose_note = _person(sheet, person, learnt)
    profiles = {name: _looked(name, sheet, sheets) for name in sheet.names if name and name != whose}
    profiles |= {name: Seen("", f"{', '.join(files[:SHOWN])} lacks it") for name, files in lacking.items()}
    guessed = not learnt
    if guessed:
        learnt = [_guess(profiles)]
    if len(learnt) == 1 and learnt[0] in profiles:
        profiles[learnt[0]] = _one_pair(learnt[0], profiles[learnt[0]], sheets)
    target = _target(learnt, profiles, event=bool(event))
    family, why = _family(len(sheet.rows), any(profile.kind == "image" for profile in profiles.values()))
    inputs = {column: profile for column, profile in profiles.items() if profile.kind and column not in learnt}
    file = bind(
        TaskFile,
        {
            "name": name, "title": name, "person": whose or ONE_ROW, "target": target,
            "columns": tuple(_column(column, profile) for column, profile in inputs.items()),
            "model": family,
            "training": _training(target),
        },
    )  # fmt: skip
    notes = {f"columns.{column}": profile.note for column, profile in inputs.items()} | {"person": whose_note}
    notes |= {f"target.{key}": CONFIRM for key in ("classes", "low", "high")} | {"title": "say it in words"}
    if guessed:
        notes["target.column"] = "guessed: --target COLUMN says it"
    left_out = [f"left out: '{column}': {profile.reason}" for column, profile in profiles.items() if not profile.kind]
    gaps = [(name, sum(map(absent, sheet.column(name)))) for name in learnt]
    lost = [f"'{name}', which is to be learnt, is missing in {count} records" for name, count in gaps if count]
    said = [f"{read.said}{beside}" for read, (_, beside) in zip(sheets, own, strict=True)]
    read_as = [f"{read.path.name}: {len(read.rows)} records; {how}" for read, how in zip(sheets, said, strict=True)]
    head = f"{len(sheet.rows)} records, {len(inputs)} inputs"
    apart = [f"'{column}': {line}" for column, profile in profiles.items() for line in profile.told]
    differ = [line for column, profile in inputs.items() for line in _middles(column, files, profile.middles)]
    cells = {column: sheet.column(column) for column in (*inputs, *learnt)}
    leaks = telling(inputs, {name: profiles[name] for name in learnt}, cells, sheet.decimal)
    remarks = [
        *([f"{head}; {said[0]}"] if len(files) == 1 else [*read_as, head]),
        *left_out, *([EMPTY] if lacking else []), *lost, *apart, *differ, *leaks, f"model: {family.family}, {why}",
    ]  # fmt: skip
    text = "".join(f"# {_plain(line)}\n" for line in left_out) + to_text(file, notes | {"model.family": why})
    return Proposal(text, tuple(remarks), sheets[0].path, _settings(sheets[0], profiles))


def _settings(sheet: Sheet, profiles: dict[str, Seen]) -> tuple[str, ...]:
    """How `sheet` is to be read, by what its cells were like."""
    encoding = () if sheet.encoding in ("", *BY_ITSELF) else (f"data.encoding={sheet.encoding}",)
    needs = tuple(dict.fromkeys(need for profile in profiles.values() if profile.kind for need in profile.needs))
    codes = dict.fromkeys(code for profile in profiles.values() if profile.kind for code in profile.codes)
    return (*encoding, *needs, *([f"data.missing_words=[{','.join(codes)}]"] if codes else []))


def _looked(name: str, sheet: Sheet, sheets: Sequence[Sheet]) -> Seen:
    """What a column is in all files together; what numbers the records of each file does so, though numbers recur."""
    if name in sheet.nested:
        return Seen("", "lists: if each is as long, write {kind: number, shape: [LENGTH], low: …, high: …}")
    if (images := pictured([(own.path.parent, own.column_like(name)) for own in sheets])) is not None:
        return images
    seen = look(name, sheet.column(name), sheet.decimal)
    if len(sheets) == 1:
        return seen
    if seen.kind != "boolean":  # whose usual words are known, whichever a file has
        usual, differing = coded_apart(name, sheets)
        if differing:
            cells = [cell for own in usual for cell in own.column_like(name)]
            seen = look(name, cells, usual[0].decimal)
            seen.told += tuple(differing)
            return seen
    if not seen.kind:
        return seen
    if _names_files([own.column_like(name) for own in sheets]):
        return Seen("", "one word in each file: it names the institution, and tells nothing within one")
    each = [look(name, own.column_like(name), own.decimal) for own in sheets]
    seen.middles = tuple(own.middle for own in each)
    if len({own.needs for own in each}) > 1 and seen.kind == "date":
        own_days = (_own_days(own, sheet.path) for own, sheet in zip(each, sheets, strict=True))
        seen.told += tuple(filter(None, own_days))
        seen.needs, seen.note = (), CONFIRM
    numbers_records = all("in every record" in profile.reason and not profile.kind for profile in each)
    constant = any(len(set(own.column_like(name))) == 1 for own in sheets)
    if "plausible" in seen.values:  # one file in another unit does not move the middle of the files' middles
        middles = [middle for middle in seen.middles if middle is not None]
        if middles:
            seen.values |= plausible(statistics.median(middles), seen.values["low"], seen.values["high"])
    return each[0] if numbers_records and not constant else seen


def _own_days(seen: Seen, path: Path) -> str:
    """What to write beside a file whose days are written in another way than other files'."""
    forms = [need.partition("=")[2] for need in seen.needs]
    if not forms:
        return ""
    return f"for {path.name} write beside it {path.stem}{ENDING}: 'data: {{date_format: \"{' or '.join(forms)}\"}}'"


def _one_pair(name: str, seen: Seen, sheets: Sequence[Sheet]) -> Seen:
    """What a yes/no column is that is learnt: its classes are the words of most files, for a class has one word."""
    if seen.kind != "boolean" or len(sheets) == 1:
        return seen
    usual, differing = classes_of(name, sheets)
    if differing:
        seen = look(name, [cell for own in usual for cell in own.column_like(name)], usual[0].decimal)
        seen.told += tuple(differing)
    return seen


def _names_files(columns: Sequence[Sequence[str]]) -> bool:
    """Whether a column has one and the same word in all of a file, and another one in each."""
    words = [{cell for cell in cells if not absent(cell)} for cells in columns]
    return all(len(own) == 1 for own in words) and len(set().union(*words)) == len(words)


def _middles(name: str, files: Sequence[Path], looked: Sequence[float | None]) -> list[str]:
    """A line for each file whose numbers in a column lie about twice as high as the others', or half as high."""
    middles = {file.name: middle for file, middle in zip(files, looked, strict=False) if middle and middle > 0}
    lines = []
    for file, middle in middles.items():
        others = [other for own, other in middles.items() if own != file]
        if others and not 1 / UNLIKE < (ratio := middle / statistics.median(others)) < UNLIKE:
            lines.append(f"'{name}': the middle of {file} is {ratio:.2g} times that of the others: another unit?")
    return lines


def _plain(line: str) -> str:
    return "".join("�" if steers(letter) else letter for letter in line)


def _require_in_all(sheets: Sequence[Sheet], names: Sequence[str]) -> None:
    """Raise ConfigError for a column that some files have and others lack: a proposal takes one name for all."""
    for name in names:
        lack = [own for own in sheets if not any(fold(column) == fold(name) for column in own.names)]
        if lack and len(lack) < len(sheets):
            its = ", ".join(f"'{_plain(column)[:64]}'" for column in lack[0].names if column)
            raise ConfigError(
                f"{', '.join(own.path.name for own in lack)}: no column '{name[:64]}', which other files have; propose "
                "from those alone (--from-csv FILE, several times), and at a clinic with other names declare them in "
                f"the file of data.mapping: columns: {{'{name[:64]}': OWN NAME}}; {lack[0].path.name} has {its}"
            )


def _known(sheet: Sheet, name: str, option: str) -> str:
    """The column called `name`, whatever its case. Raises ConfigError."""
    matches = [column for column in sheet.names if column.casefold() == name.strip().casefold()]
    if len(matches) != 1:
        raise ConfigError(f"{option}: no column '{name[:64]}'{nearest(name[:64], filter(None, sheet.names))}")
    return matches[0]


def _person(sheet: Sheet, requested: str, learnt: Sequence[str]) -> tuple[str, str]:
    """The column that names a person, "" where each row is another, and what to say of that."""
    if requested and requested != "row":
        return _known(sheet, requested, "--person"), "the column that says whose record it is"
    like = like_persons([column for column in sheet.names if column and column not in learnt])
    if requested or not like:
        return "", CONFIRM if not requested else "each row is another person"
    return like[0], f"{CONFIRM}: the column that says whose record it is"


def _column(name: str, profile: Seen) -> Column:
    words = {
        key: value for key, value in profile.values.items() if key in ("true", "false") and value[0] not in ("0", "1")
    }
    settings = {key: value for key, value in profile.values.items() if key not in ("true", "false")}
    return bind(Column, {"name": name, "kind": profile.kind, **settings, **words}, f"columns.{name}")


def _guess(profiles: dict[str, Seen]) -> str:
    """The column that is probably to be learnt. Raises ConfigError where none looks like it."""
    usable = [name for name, profile in profiles.items() if profile.kind in ("boolean", "category")]
    likely = [name for name in usable if LEARNT.fullmatch(name)] or usable[-1:]
    if not likely:
        raise ConfigError("no column looks like what is to be learnt: name it with --target COLUMN")
    return likely[0]


def _target(learnt: Sequence[str], profiles: dict[str, Seen], *, event: bool) -> Target:
    """What the columns `learnt` ask for. Raises ConfigError if they cannot be learnt."""
    for name in learnt:
        if name not in profiles or not profiles[name].kind:
            raise ConfigError(
                f"'{name}' cannot be learnt: {profiles[name].reason if name in profiles else 'it names persons'}"
            )
    first, kinds = profiles[learnt[0]], [profiles[name].kind for name in learnt]
    if event:
        if kinds != ["number", "boolean"]:
            raise ConfigError(f"survival needs a --target that is a number (a time) and a yes/no --event, got {kinds}")
        time = {"time": learnt[0], "event": learnt[1], "high": first.values["high"]}
        return _made({"kind": "survival", **time})
    if len(learnt) > 1:
        if set(kinds) != {"boolean"}:
            raise ConfigError(f"several targets must all be yes or no, got {kinds}")
        return _made({"kind": "labels", "columns": tuple(learnt)})
    if first.kind == "number":
        bounds = {"low": first.values["low"], "high": first.values["high"]}
        return _made({"kind": "number", "column": learnt[0], **bounds})
    if first.kind == "date":
        raise ConfigError(f"'{learnt[0]}' is a date, which cannot be learnt; learn the days to it")
    classes = first.values.get("categories") or (*first.values["false"], *first.values["true"])
    return _made({"kind": "binary" if len(classes) == 2 else "classes", "column": learnt[0], "classes": classes})


def _training(target: Target) -> Training:
    """Plain SGD, which private runs take too, whose rate falls to 0 in the end.

    The gradient of a squared error grows with the error: where columns have long tails, steps at a rate that stays
    swing about the best model to the end, so numbers are learnt in smaller ones that fall for longer.
    """
    if target.kind == "number":
        return Training(learning_rate=0.05, batch_size=32, local_epochs=1, schedule="wsd", cooldown=0.5)
    return Training(learning_rate=0.1, batch_size=32, local_epochs=1, schedule="wsd")


def _made(values: dict[str, Any]) -> Target:
    return bind(Target, values, "target")


def _family(records: int, image: bool) -> tuple[Family, str]:
    """The family of models, and why it."""
    if image:
        return CNN(), "a small convolutional network, since there is an image; resnet is a larger one"
    if records < ENOUGH:
        return Linear(), f"since there are fewer than {ENOUGH:,} records here; mlp learns bends and interactions"
    return MLP(
        hidden=(32,)
    ), f"a small network, since there are {ENOUGH:,} records or more; linear is what it has to beat"
