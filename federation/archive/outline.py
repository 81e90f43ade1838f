"""A task of which only the manifest is known: columns, name and digest, but no code. For whoever must not import it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, cast

from sovfed.federation.errors import ConfigError
from sovfed.federation.tasks import Task

if TYPE_CHECKING:
    from sovfed.federation.archive.manifest import Manifest


@dataclass(frozen=True, eq=False)
class Outline(Task):
    """As its archive says. Its model cannot be built."""

    known_digest: str = ""

    @property
    def digest(self) -> str:
        """The one that the manifest names."""
        return self.known_digest


def outline(manifest: Manifest) -> Task:
    """The task that `manifest` describes. Raises ConfigError where its model, loss or metrics are asked for."""

    def build(*_: object) -> NoReturn:
        raise ConfigError(f"task '{manifest.name}' is code out of an archive, which runs in the trainer alone")

    return Outline(
        name=manifest.name, title=manifest.title, schema=manifest.schema, metrics=cast("Any", _NoMetrics()),
        headline=manifest.headline, build=build, loss=build, version=manifest.version, licence=manifest.licence,
        citation=manifest.citation, known_digest=manifest.digest,
    )  # fmt: skip


class _NoMetrics:
    def __getattr__(self, name: str) -> object:
        raise ConfigError("the metrics of a task out of an archive are code, which runs in the trainer alone")
