"""What an audit of hours has come to so far, in the file of `--json`: the same command goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from sovfed.federation.errors import ConfigError
from sovfed.federation.files import write_atomic
from sovfed.simulations.audit.report import Findings, document, verdict, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from rich.console import Console

ADDED: Final = ("sentence", "as_it_should_be")  # to a row, beside the fields of its result


class Result(Protocol):
    """What is known of one thing that was tried; a dataclass."""

    @property
    def name(self) -> str: ...

    @property
    def good(self) -> bool: ...

    def sentence(self) -> str: ...


ResultT = TypeVar("ResultT", bound=Result)


@dataclass
class Record(Generic[ResultT]):
    """The results of `audit` by name, in order; in `path`, if there is one, as soon as each is known."""

    audit: str
    ratios: Callable[[Iterable[ResultT]], dict[str, float]]
    path: Path | None = None
    results: dict[str, ResultT] = field(default_factory=dict)

    def read(self, *kinds: type[ResultT]) -> None:
        """Take in what the file holds, of these dataclasses. Raises ConfigError for a file of something else."""
        if self.path is None or not self.path.exists() or not self.path.stat().st_size:
            return
        try:
            for row in json.loads(self.path.read_bytes())["rows"]:
                result = _of_kind({key: row[key] for key in row if key not in ADDED}, kinds)
                self.results[result.name] = result
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            why = f"is not of this version's `sovfed audit {self.audit}`: name another file"
            raise ConfigError(f"{self.path} {why}") from error

    def remaining(self, names: Sequence[str]) -> list[str]:
        """Those of `names` that have no result yet."""
        return [name for name in names if name not in self.results]

    def add(self, result: ResultT) -> None:
        """Take a result in, and write the file."""
        self.results[result.name] = result
        if self.path is not None:
            write_atomic(self.path, json.dumps(document(self.audit, self._findings()), indent=2).encode())

    def close(self, console: Console) -> bool:
        """Whether all results are good; prints the ratios, and writes the file."""
        return write(self.audit, self._findings(), self.path, console)

    def _findings(self) -> Findings:
        results = list(self.results.values())
        return Findings([(result, result.sentence(), result.good) for result in results], self.ratios(results))


def _of_kind(row: dict[str, Any], kinds: Sequence[type[ResultT]]) -> ResultT:
    """The row as that of `kinds` whose fields it has; TypeError if there is none."""
    for kind in kinds[:-1]:
        try:
            return kind(**row)
        except TypeError:
            continue
    return kinds[-1](**row)


def line(result: Result, left: str) -> str:
    """What is printed of a result, and how much is left."""
    return verdict(result.sentence() + (f" [dim]({left})[/]" if left else ""), result.good)
