"""What an archive holds and what its task is: plain values, in the one spelling whose bytes are signed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sovfed.federation.errors import ConfigError
from sovfed.federation.schema import bind, bounded, choice, named
from sovfed.federation.tasks.columns import Schema
from sovfed.federation.text import json_object

if TYPE_CHECKING:
    from collections.abc import Mapping

API: Final = 1  # of `sovfed.task`, which a package imports
YAML: Final = "task.yaml"
PACKAGE: Final = "package"
MAX_BYTES: Final = 4 << 20


@dataclass(frozen=True)
class Entry:
    """A file: its SHA-256 and its length."""

    sha256: str = bounded(low=64, high=64)
    size: int = bounded(low=0)


@dataclass(frozen=True)
class Tensor:
    """A tensor of the model: as it travels, and whether it is trained."""

    name: str = bounded(low=1, high=256)
    shape: tuple[int, ...] = bounded(low=0)
    trained: bool = True


@dataclass(frozen=True)
class Requirement:
    """What a package asks to be installed, and the version that it was packed and tried with."""

    text: str = bounded(low=1, high=512)
    tried: str = bounded("", 0, 64)


@dataclass(frozen=True)
class Tried:
    """A check of `sovfed task check` as it came out when the archive was packed."""

    what: str = bounded(low=1, high=64)
    held: bool = True
    detail: str = bounded("", 0, 4096)


@dataclass(frozen=True)
class Manifest:
    """All that is signed. `digest` is the task's, `files` are those of the folder content/."""

    schema: Schema
    name: str = named()
    title: str = bounded(low=1, high=200)
    digest: str = bounded(low=64, high=64)
    headline: str = bounded(low=1, high=64)
    version: str = bounded("1", 1, 64)
    kind: str = choice(PACKAGE, (PACKAGE, YAML))
    entry: str = bounded("", 0, 256, doc="where a package's task is: module:NAME")
    files: dict[str, Entry] = field(default_factory=dict)
    parameters: tuple[Tensor, ...] = ()
    values: int = bounded(0, 0, doc="of the model that travel")
    metrics: tuple[str, ...] = bounded((), 1, 64)
    evaluation_size: int = bounded(0, 0)
    requires: tuple[Requirement, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)  # recommended to a run, as JSON
    checks: tuple[Tried, ...] = ()
    privacy: tuple[str, ...] = bounded((), 0, 4096, doc="what stands against private runs; none: they are possible")
    licence: str = bounded("", 0, 200)
    citation: str = bounded("", 0, 4096, lines=True)
    api: int = bounded(API, API, API)

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each file by its name."""
        return {name: entry.sha256 for name, entry in self.files.items()}

    def to_bytes(self) -> bytes:
        """The one spelling of this manifest."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, indent=1, ensure_ascii=True).encode() + b"\n"


def read_manifest(data: bytes) -> Manifest:
    """The manifest that `data` spells. Raises ConfigError, and nothing else, if it is not `to_bytes` of any."""
    manifest = bind(Manifest, json_object(data, "manifest", ConfigError, MAX_BYTES), "manifest")
    if manifest.to_bytes() != data:
        raise ConfigError("manifest: not in the spelling in which it is signed")
    return manifest


def listed(content: Mapping[str, bytes]) -> dict[str, Entry]:
    """The entry of each file of `content`."""
    return {name: Entry(hashlib.sha256(data).hexdigest(), len(data)) for name, data in content.items()}


def content_digest(digests: Mapping[str, str]) -> str:
    """The digest of all files by their names and digests: what `Task.code` of a packed task is."""
    return hashlib.sha256(json.dumps(dict(digests), sort_keys=True).encode()).hexdigest()
