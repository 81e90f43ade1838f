"""The institutions of a simulation: a sequence that makes each one when it is asked for."""

from __future__ import annotations

import dataclasses
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, overload

from sovfed.clients.data import Dataset, check_private_data, load_records, single
from sovfed.federation.config import Config, DataConfig
from sovfed.federation.errors import ConfigError, DataError, PrivacyError
from sovfed.federation.messages import Sums, Vector
from sovfed.federation.tasks import Task
from sovfed.federation.tasks.registry import configured_task
from sovfed.simulations.baselines import Comparison, compare
from sovfed.simulations.configured import with_connector
from sovfed.simulations.own_settings import natural_institutions, settings_file
from sovfed.simulations.partition import Partition, make_partition

LABEL: Final = 63  # letters of a DNS label
SPELT: Final = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "æ": "ae", "ø": "oe", "å": "aa", "ł": "l"})
LOOKED_AT: Final = 100  # institutions whose records are looked at, once those of one of them cannot be used
KEPT: Final = 1_000  # institutions whose records, or trainers, are kept from round to round


@dataclass(frozen=True)
class Institution:
    """Its name, its part of the data (of which, with seed and round, its order of records follows) and its records."""

    name: str
    site: str
    load: Callable[[Task], Dataset]
    settings: str = ""  # the file that has its own ones, if there is one or not


class Partitioned(Sequence[Institution]):
    """The institutions of a partition; the records last used are kept. `table` and `rows` as the partition's."""

    def __init__(self, partition: Partition) -> None:
        self._partition, self._records = partition, lru_cache(KEPT)(partition.records)
        self.table, self.rows = partition.table, lru_cache(KEPT)(partition.rows)

    def __len__(self) -> int:
        return self._partition.institutions

    @overload
    def __getitem__(self, index: int) -> Institution: ...

    @overload
    def __getitem__(self, index: slice) -> list[Institution]: ...

    def __getitem__(self, index: int | slice) -> Institution | list[Institution]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        return Institution(f"hospital-{number + 1}", str(number), lambda task: self._records(number))


def make_population(config: Config) -> Sequence[Institution]:
    """The institutions that `config` describes. Raises ConfigError, DataError and PrivacyError."""
    task = configured_task(config.task)  # first: out of an archive it may bring the connector
    natural = sites(config) if config.partition.name == "natural" else []
    if config.privacy.private:
        _check_private(task, natural or [config.data])
    if natural:
        return of_sites(natural)
    if config.data.source == "none":
        raise ConfigError(f"task '{config.task.name}' has no records to cut up: partition=natural")
    return Partitioned(make_partition(config))


def _check_private(task: Task, sources: Sequence[DataConfig]) -> None:
    """Raise PrivacyError with what each of the sources lacks."""
    lacking = []
    for source in sources:
        try:
            check_private_data(task, source)
        except PrivacyError as error:
            lacking.append(str(error))
    if lacking:
        raise PrivacyError("\n".join(dict.fromkeys(lacking)))


def of_sites(data: Sequence[DataConfig]) -> list[Institution]:
    """One institution for each entry of `data`, as its connector has it."""
    return [
        Institution(name, source.site, lambda task, source=source: load_records(task, source), settings_file(source))  # type: ignore[misc]
        for name, source in zip(institution_names(data), data, strict=True)
    ]


def wrong_data(population: Sequence[Institution], task: Task, first: DataError) -> DataError:
    """What is wrong with the records of every institution, where it is more than `first`."""
    told: dict[str, str] = {}
    for institution in population[:LOOKED_AT] if not isinstance(population, Partitioned) else ():
        try:
            institution.load(task)
        except DataError as error:
            told[institution.name] = str(error)
    files = [institution.settings for institution in population[:LOOKED_AT] if institution.name in told]
    example = "data: {missing_words: [unknown]}"
    own = f"\nsettings for one institution alone: {files[0]}, as in '{example}'" if any(files) else ""
    if len(told) < 2:
        return DataError(f"{first}{own}")
    lines = "\n".join(f"{name}: {text}" for name, text in told.items())
    return DataError(f"{len(told)} of {len(population)} institutions have records that cannot be used\n{lines}{own}")


def sites(config: Config) -> list[DataConfig]:
    """One DataConfig per institution: the real ones that the source has records of, or shares of a simulated split."""
    config = with_connector(config)
    if natural := natural_institutions(config.data):
        return natural
    names = [str(site) for site in range(config.simulation.institutions)]
    if single(config.data) and len(names) > 1:
        raise ConfigError(
            f"{config.data.path or config.data.source}: one file or store is one institution, and {len(names)} are "
            "asked for: name a folder of one a site, or data.site_column of a table, or cut it up with partition=iid"
        )
    return [dataclasses.replace(config.data, site=name, sites=len(names)) for name in names]


def institution_names(data: Sequence[DataConfig]) -> list[str]:
    """A name for each institution, as a certificate may bear it: its site's, or hospital-1, hospital-2, …"""
    return labels([records.site for records in data])


def labels(sites: Iterable[str]) -> list[str]:
    """Each of `sites` in a-z, 0-9 and '-', no two alike; hospital-1, hospital-2, … where nothing of it is left."""
    names: list[str] = []
    for number, site in enumerate(sites):
        preferred = f"hospital-{int(site) + 1}" if site.isdecimal() else _label(site)
        fallbacks = (f"hospital-{following}" for following in itertools.count(number + 1))
        names.append(next(name for name in itertools.chain([preferred], fallbacks) if name and name not in names))
    return names


def _label(site: str) -> str:
    """`site` in the letters of a DNS label; "" where nothing of it is left."""
    spelt = unicodedata.normalize("NFKD", unicodedata.normalize("NFC", site).lower().translate(SPELT))
    plain = spelt.encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:LABEL].strip("-")


def compare_population(config: Config, population: Sequence[Institution], model: Vector, scale: Sums) -> Comparison:
    """As `compare`, over a simulation's institutions, by their names."""
    task = configured_task(config.task)
    parts, sites = [member.load(task) for member in population], [member.site for member in population]
    return compare(config, parts, sites, model, scale, [member.name for member in population])
