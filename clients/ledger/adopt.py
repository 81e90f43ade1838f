"""Bringing a ledger of another name into the one of the policy's population: nothing that was spent is forgotten."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from sovfed.clients.ledger.book import replay
from sovfed.clients.ledger.entries import Closed, Entry, Renamed, Spent
from sovfed.clients.ledger.file import LedgerFile, ledger_path, ledgers
from sovfed.clients.ledger.lines import name_of
from sovfed.federation.errors import PrivacyError
from sovfed.federation.files import sync_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sovfed.clients.ledger.entries import History

ADOPTED: Final = ".adopted"


def adopt(home: Path, old: str, name: str, now: float) -> str:
    """Make the ledger `old` part of the one of `name`; what was done. Begun again after a crash, it goes on.

    If `name` has none yet, the old one is renamed and its chain goes on. Else what `old` spent is entered again, as if
    it were spent now, so that it counts at least as long. Raises PrivacyError if either is damaged or was rolled back,
    ServiceError while a trainer has one open.
    """
    if old == name or old not in ledgers(home):
        raise PrivacyError(f"the home has no other ledger '{old}' (it has {', '.join(ledgers(home)) or 'none'})")
    source = LedgerFile(home, old, name)
    try:
        if source.mark:
            raise PrivacyError(f"'{old}': {source.mark}")
        populations = replay(source.lines).populations()[1:]
        if name in populations or (populations and ledger_path(home, name).exists()):
            raise PrivacyError(
                f"'{old}' has accounts of {', '.join(populations)}: '{name}' must be another, without a ledger"
            )
        if not ledger_path(home, name).exists():
            _rename(home, source, old, name, now)
            return f"'{old}' is now '{name}', its chain goes on"
        target = LedgerFile(home, name)
        try:
            entered = _copy(source, target, old, now)
        finally:
            target.close()
        _set_aside(home, old)
    finally:
        source.close()
    return f"'{old}' was entered into '{name}': {entered} releases"


def _rename(home: Path, source: LedgerFile, old: str, name: str, now: float) -> None:
    """The head first: without its ledger it stops everything, so a crash in between leaves nothing to pay from."""
    if name_of(source.lines) != name:
        source.append(Renamed(name), now)
    source.save_head(name)
    ledger_path(home, old).rename(ledger_path(home, name))
    ledger_path(home, old).with_suffix(".head").unlink(missing_ok=True)
    sync_folder(ledger_path(home, name).parent)


def _copy(source: LedgerFile, target: LedgerFile, old: str, now: float) -> int:
    """Enter what `source` spent and is not in `target` yet; how many releases that were."""
    if target.mark:
        raise PrivacyError(f"the other ledger: {target.mark}")
    history = replay(target.lines)
    count = 0
    for entry in _entries(replay(source.lines), history, old):
        target.append(entry, now)
        count += isinstance(entry, Spent)
    return count


def _entries(history: History, known: History, old: str) -> Iterator[Entry]:
    """The entries that `known` lacks of all that `history` learnt, under names that begin with `old`."""
    for (run, purpose), granted in history.grants.items():
        name = f"{old}:{run}"[:128]
        adopted = known.grants.get((name, purpose))
        if not granted.releases or (adopted and adopted.closed):
            continue
        if adopted is None:
            yield replace(granted.grant, run=name)
        for _, spent in history.spends:
            key = (spent.release.round, spent.release.attempt)
            if (spent.run, spent.purpose) == (run, purpose) and (adopted is None or key not in adopted.releases):
                yield replace(spent, run=name)
        yield Closed(name, purpose, granted.reserved)
    for _, unbounded in history.unbounded.values():
        if (f"{old}:{unbounded.run}"[:128], unbounded.purpose) not in known.unbounded:
            yield replace(unbounded, run=f"{old}:{unbounded.run}"[:128])


def _set_aside(home: Path, old: str) -> None:
    for suffix in (".head", ".ledger"):
        path = ledger_path(home, old).with_suffix(suffix)
        if path.exists():
            path.rename(path.with_name(path.name + ADOPTED))
    sync_folder(ledger_path(home, old).parent)
