"""A sheet as its institution declares it beside the table: names and words of others, units, days."""

from __future__ import annotations

import dataclasses
from datetime import date
from typing import TYPE_CHECKING, Final

import numpy as np

from sovfed.clients.data.beside import own_settings, settings_of
from sovfed.clients.data.tables.mapping import declared_columns
from sovfed.clients.data.tables.words import Rules, fold
from sovfed.federation.config import DataConfig
from sovfed.federation.config.data import EXCEL
from sovfed.federation.schema import bind
from sovfed.federation.tasks.taskfile import EPOCH

if TYPE_CHECKING:
    from pathlib import Path

    from sovfed.clients.data.tables.mapping import OwnColumn
    from sovfed.clients.proposals.sniffing import Sheet

DIGITS: Final = 6  # of a number in the task's unit


def settings_for(path: Path, written: DataConfig) -> tuple[DataConfig, str]:
    """`written` under what a file beside the table `path` says of it, and what to tell of that. Raises ConfigError."""
    own = settings_of(path)
    if own is None:
        return written, ""
    values = {**vars(written), **own_settings(own)}
    return bind(DataConfig, values, f"{own}: data"), f", with the settings in {own.name}"


def as_declared(sheet: Sheet, written: DataConfig) -> Sheet:
    """`sheet` with the task's names, words and units for its own, and days as 2026-01-31. Raises DataError."""
    own = {} if written.mapping is None else declared_columns(written)
    by_name = {fold(column.name or name): (name, column) for name, column in own.items()}
    names, columns = list(sheet.names), [list(cells) for cells in zip(*sheet.rows, strict=True)]
    rules = Rules.of(written, sheet.decimal)
    for place, cells in enumerate(columns):
        if (found := by_name.get(fold(names[place]))) is not None:
            names[place], columns[place] = found[0], _meant(cells, found[1], rules)
        elif written.date_format not in (None, EXCEL):
            columns[place] = _days(cells, rules)
    return dataclasses.replace(sheet, names=tuple(names), rows=[list(row) for row in zip(*columns, strict=True)])


def _meant(cells: list[str], own: OwnColumn, rules: Rules) -> list[str]:
    """The task's words for those of `cells`, or its numbers; as `rules` say, days too."""
    if own.changes:
        return [_converted(cell, own, rules) for cell in cells]
    if own.folded:
        return [own.folded.get(fold(cell), cell) for cell in cells]
    return _days(cells, rules) if rules.date_format not in ("", EXCEL) else cells


def _converted(cell: str, own: OwnColumn, rules: Rules) -> str:
    number, fault = rules.number(cell)
    if fault:
        return cell
    return f"{own.of(np.array([number]))[0]:.{DIGITS}g}".replace(".", rules.decimal)


def _days(cells: list[str], rules: Rules) -> list[str]:
    """`cells` as year-month-day, if all that are there are days as `rules` say."""
    days = [rules.day(cell) for cell in cells if fold(cell) not in rules.absent]
    if not days or any(fault for _, fault in days):
        return cells
    read = (("", "") if fold(cell) in rules.absent else rules.day(cell) for cell in cells)
    return [date.fromordinal(int(day) + EPOCH).isoformat() if day != "" else "" for day, _ in read]
