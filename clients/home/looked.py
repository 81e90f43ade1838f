"""The records of every study looked at as a run would read them, before one does: what fails, where, and the fix.

A line names study, task, column, count and first lines, and never a value.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sovfed.clients.cli.patient import OutOfTimeError, within
from sovfed.federation.config import REST
from sovfed.federation.errors import ConfigError, SovfedError, WrongTaskError
from sovfed.federation.host.doctor import Finding
from sovfed.federation.tasks import registry
from sovfed.federation.text import AT, names_task, visible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sovfed.clients.home.policy import Policy
    from sovfed.federation.config import ClientConfig, DataConfig
    from sovfed.federation.tasks import Task

NAME: Final = "records"
SECONDS: Final = 60.0  # for each table
MOST_BYTES: Final = 2 * 2**30  # of records; more are not read just to look
MANY_FILES: Final = 1_000_000  # in a folder; nor are these


def allowed_tasks(config: ClientConfig, policy: Policy) -> list[Task]:
    """The newest version of every task that `policy` allows and this institution has."""
    from sovfed.clients.home.packages import make_outlines_known
    from sovfed.federation.tasks.shelf import Shelf

    Shelf(Path(config.home)).make_known(policy.allows_own)
    make_outlines_known(Path(config.home), policy)
    return [task for entry in policy.allowed_tasks if (task := _newest(entry)) is not None]


def records_findings(
    config: ClientConfig, policy: Policy, study: str | None = None, seconds: float = SECONDS
) -> Iterator[Finding]:
    """What the records of the tasks that `policy` allows are like, as a run would read them; of `study` alone if given.

    Each table is given at most `seconds`; what is larger than some GB is not read, and a finding says so.
    """
    for task in allowed_tasks(config, policy):
        try:
            name = config.study_of(task)
        except WrongTaskError as error:
            yield Finding(NAME, "warn", str(error))
            continue
        if task.build is not None and study in (None, name):
            yield from _look(name, task, config.data_of(task), seconds)


def data_findings(
    config: ClientConfig, policy: Policy, study: str | None = None, seconds: float = SECONDS
) -> list[str]:
    """What keeps the records from being used, or may, a line each: those of `records_findings` that are not good."""
    findings = records_findings(config, policy, study, seconds)
    return list(dict.fromkeys(finding.found for finding in findings if finding.state != "ok"))


def population_findings(config: ClientConfig, policy: Policy) -> list[str]:
    """Why runs of a study would be charged to nobody, and so be refused, a line each; the ledger is only read."""
    from sovfed.clients.home.whose import whose_in
    from sovfed.clients.ledger.book import replay
    from sovfed.clients.ledger.entries import History
    from sovfed.clients.ledger.file import ledgers, read_ledger, token_of

    home, name = Path(config.home), policy.privacy.population_name
    history = replay(read_ledger(home, name)[0]) if name in ledgers(home) else History(name)
    lines = []
    for study, task in _read_by(config, policy):
        whose = whose_in(config, study, task)
        if whose.population and whose.population not in policy.populations:
            lines.append(f"study {study}: policy.yaml has no population '{whose.population}'; add it to `populations`")
            continue
        keys = tuple(token_of(home, key) for key in whose.keys) if history.known else ()
        if reason := history.why_not(dataclasses.replace(whose, keys=keys)):
            lines.append(f"study {study}: runs will be refused: {reason}")
    return lines


def _read_by(config: ClientConfig, policy: Policy) -> Iterator[tuple[str, str]]:
    """Each study with its task's name, and each allowed task that no study is of."""
    named = {study: settings.task.partition(AT)[0] for study, settings in config.studies.items()}
    yield from named.items()
    yield from ((REST, name) for name in policy.allowed_names if name not in named.values())


def reads_itself(task: Task, data: DataConfig) -> bool:
    """Whether a connector out of the task's own archive is named, which is code that only the trainer imports."""
    from sovfed.clients.data import sources
    from sovfed.federation.archive.outline import Outline

    return isinstance(task, Outline) and data.source not in sources()


def _newest(entry: str) -> Task | None:
    try:
        versions = registry.versions(entry.partition(AT)[0])
    except ConfigError:  # a run is told that there is none
        return None
    if AT not in entry:
        return versions[-1]
    return next((task for task in reversed(versions) if names_task(entry, task.name, task.digest)), None)


def _look(study: str, task: Task, data: DataConfig, seconds: float) -> Iterator[Finding]:
    """What reading the records as `task` would shows, a finding each; never a value."""
    where = f"{'data' if study == REST else f'study {study}'}, task {task.name}: "
    if reason := _too_large(data):
        yield Finding(NAME, "warn", f"{where}{reason} and not looked at here; `sovfed client check-data` does")
        return
    if reads_itself(task, data):
        reason = "read by the package's own connector, which runs in the trainer alone"
        yield Finding(NAME, "warn", f"{where}{reason}, and not looked at here")
        return
    from sovfed.clients.data.survey import report

    try:
        with within(seconds, visible(f"{where}reading the records")):
            result = report(task, data)
    except OutOfTimeError:
        more = "`sovfed client study check --seconds N` gives it longer"
        yield Finding(NAME, "warn", f"{where}the records were not read to the end within {seconds:.0f} s; {more}")
        return
    except (SovfedError, OSError) as error:
        yield Finding(NAME, "fail", f"{where}the records cannot be used: {error}")
        return
    if result.usable:
        counts = f"{result.rows} rows, {result.persons} persons, {result.train} train, {result.test} held out"
        yield Finding(NAME, "ok", f"{where}{counts}")
    else:
        fault = f"{result.bad} of {result.rows} rows are at fault, and no run can use the records"
        yield Finding(NAME, "fail", f"{where}{fault}")
    for line in result.faults:  # of usable records, in the rows that the declared rule leaves out
        said = f"left out, as data.bad_rows says: {line}" if result.usable else line
        yield Finding(NAME, "ok" if result.usable else "fail", f"{where}{said}")
    for line in result.warnings:
        yield Finding(NAME, "warn" if result.usable else "fail", f"{where}{line}")


def _too_large(data: DataConfig) -> str:
    """Why the records would fill the memory of a command that only looks; "" if they would not."""
    if data.path is None or data.url_file is not None:
        return ""
    size = 0
    for count, path in enumerate(_files(Path(data.path).expanduser())):
        size += _size(path) if data.source != "images" else 0  # an image at a time
        if size > MOST_BYTES or count >= MANY_FILES:
            return f"more than {MOST_BYTES >> 20} MB" if size > MOST_BYTES else f"more than {MANY_FILES} files"
    return ""


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for folder, _, files in os.walk(path):
        yield from (Path(folder) / name for name in files)


def _size(path: Path) -> int:
    """In bytes; 0 where there is none, of which the connector will tell."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
