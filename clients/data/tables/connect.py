"""What the connectors of tables share: which file is a site's, which sites there are, and the way to records."""

from __future__ import annotations

import collections
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sovfed.clients.data import Connector
from sovfed.clients.data.files import unreadable
from sovfed.clients.data.tables import ATTEMPTS, read_table
from sovfed.clients.data.tables.cells import names_of
from sovfed.clients.data.tables.header import Index, locate
from sovfed.clients.data.tables.mapping import own_columns, renamed
from sovfed.clients.data.tables.records import as_records, settle
from sovfed.clients.data.tables.report import Report
from sovfed.clients.data.tables.source import Restart, not_private, whole
from sovfed.federation.errors import DataError
from sovfed.federation.schema import nearest
from sovfed.federation.tasks.columns import REFUSE
from sovfed.federation.text import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sovfed.clients.data import Records
    from sovfed.clients.data.tables import TableRead
    from sovfed.clients.data.tables.source import Source
    from sovfed.federation.config import DataConfig
    from sovfed.federation.tasks import Task
    from sovfed.federation.tasks.columns import Schema

    Open = Callable[[DataConfig, Iterable[str]], Source]

MAX_SITES: Final = 10_000
MAX_SITE: Final = 64  # letters of a site's name


def connector(open_: Open, suffixes: tuple[str, ...], reads: tuple[str, ...] | None = None) -> Connector:
    """The connector of tables that `open_` opens, from files that end in `suffixes`; `reads` is `Connector.reads`."""

    def load(task: Task, config: DataConfig) -> Records:
        read = read_rows(task.schema, config, open_)
        settle(task.schema, config, read)
        return as_records(task, read, config)

    def obstacle(task: Task, config: DataConfig) -> str:
        own = renamed(own_columns(task.schema, config))
        source = _opened(task.schema, config, open_, own)
        places = locate(task.schema, source.header, config, source.where, renamed=own)
        reason = not_private(places, source)
        return reason and f"{source.where}: {reason}"

    def sites(config: DataConfig) -> tuple[str, ...]:
        return sites_of(config, suffixes, open_)

    return Connector(
        load, opts_out=True, sites=sites, obstacle=obstacle,
        survey=lambda task, config: read_rows(task.schema, config, open_, keep=True),
        reads=reads,
    )  # fmt: skip


def read_rows(
    schema: Schema, config: DataConfig, open_: Open, *, targets: bool = True, files: bool = False, keep: bool = False
) -> TableRead:
    """The rows of one site. Raises DataError."""
    own = own_columns(schema, config)
    source = _opened(schema, config, open_, renamed(own))
    return read_table(schema, source, config, targets=targets, files=files, keep=keep, own=own)


def _opened(schema: Schema, config: DataConfig, open_: Open, own: Mapping[str, str]) -> Source:
    """The table. Where records leave out what they lack, a column that may be missing is there though none has it.

    Else it would hang on the one record that has it whether all others can be read.
    """
    source = open_(config, _names(schema, own))
    if getattr(source, "omits", False):
        index = Index(source.header, source.where)
        optional = (own.get(column.name, column.name) for column in schema.columns if column.missing != REFUSE)
        source.header = (*source.header, *(name for name in optional if index.place(name) is None))
    return source


def file_of(config: DataConfig, suffixes: tuple[str, ...]) -> Path:
    """The configured site's file: `data.path` itself, or SITE.csv in the folder of that name. Raises DataError."""
    if not config.path:
        raise DataError(f"data.source '{config.source}' needs data.path: the file, or a folder of one file a site")
    path = Path(config.path).expanduser()
    if not path.is_dir() or config.site_column:
        return path
    files = _files(path, suffixes)
    if config.site not in files:
        more = "; name the file itself, or its data.site"
        raise DataError(f"{path}: no file of site '{visible(config.site)}'{nearest(config.site, files)}{more}")
    return files[config.site]


def sites_of(config: DataConfig, suffixes: tuple[str, ...], open_: Open) -> tuple[str, ...]:
    """The institutions in a folder of one file a site, or in the column of sites; () for a single file's one."""
    path = Path(config.path).expanduser() if config.path else None
    if path is not None and not path.exists():
        raise DataError(f"{path}: no such file or folder; check data.path")
    if path is not None and path.is_dir() and not config.site_column:
        files = _files(path, suffixes)
        _check_differ(list(files.values()))
        return tuple(files)
    return _in_column(config, open_) if config.site_column else ()


def _names(schema: Schema, own: Mapping[str, str]) -> list[str]:
    return [own.get(column.name, column.name) for column in schema.columns]


def _files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """The files of sites in a folder, by their name without its ending. Raises DataError if there is none."""
    try:
        names = sorted(folder.iterdir())
    except OSError as error:
        raise unreadable(folder, error) from error
    files: dict[str, Path] = {}
    for path in names:
        suffix = next((suffix for suffix in suffixes if path.name.lower().endswith(suffix)), None)
        if suffix is None or path.name.startswith(".") or not path.is_file():
            continue
        site = path.name[: -len(suffix)]
        if twice := next((own for own in files if own.casefold() == site.casefold()), ""):
            raise DataError(f"{folder}: two files of site '{site[:MAX_SITE]}': {files[twice].name} and {path.name}")
        files[site] = path
    if not files or len(files) > MAX_SITES:
        raise DataError(f"{folder}: {len(files)} files that end in {' or '.join(suffixes)}, expected one for each site")
    return files


def _check_differ(files: Sequence[Path]) -> None:
    """Raise DataError where two sites have the same table, whose persons would count twice."""
    seen: dict[tuple[int, str], Path] = {}
    sizes = collections.Counter(path.stat().st_size for path in files)
    for path in files:
        if sizes[size := path.stat().st_size] > 1:
            with path.open("rb") as file:
                key = size, hashlib.file_digest(file, "sha256").hexdigest()
            if key in seen:
                raise DataError(f"{path.parent}: {seen[key].name} and {path.name} are the same, byte for byte")
            seen[key] = path


def _in_column(config: DataConfig, open_: Open) -> tuple[str, ...]:
    """The values of data.site_column, in alphabetical order. Raises DataError."""
    source = open_(config, [config.site_column or ""])
    position = Index(source.header, source.where).demand(config.site_column or "", "data.site_column")
    for _ in range(ATTEMPTS):
        sites: set[str] = set()
        try:
            for batch in source.batches([position], [], Report(source.where)):
                sites |= set(names_of(whole(batch.cells[0]))[0].unique().to_pylist()) - {""}
                if len(sites) > MAX_SITES or any(len(site) > MAX_SITE for site in sites):
                    raise DataError(
                        f"{source.where}: column '{config.site_column}' has over {MAX_SITES} values or long ones"
                    )
            return tuple(sorted(sites))
        except Restart:
            continue
    raise DataError(f"{source.where}: cannot be read")
