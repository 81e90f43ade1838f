"""An archive of a task: content/…, manifest.json and signatures/…, read from bytes or made of parts."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from sovfed.federation.archive import zipped
from sovfed.federation.archive.manifest import YAML, Manifest, read_manifest
from sovfed.federation.archive.signing import PUBLISHER, Signature, certified, check_key, read_signature
from sovfed.federation.config import TaskConfig
from sovfed.federation.errors import ConfigError, SovfedError
from sovfed.federation.text import ARCHIVE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

MANIFEST: Final = "manifest.json"
CONTENT: Final = "content/"
SIGNATURES: Final = "signatures/"
TASK_FILE: Final = "task.yaml"
MOST_SIGNATURES: Final = 64
SETTINGS: Final = {"rounds", *(field.name for field in dataclasses.fields(TaskConfig))} - {"name", "file"}
_NO_WORD: Final = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True)
class Archive:
    """A manifest as it is signed, the files that it lists, and the signatures by the names of their files.

    Made by `parse` alone, it holds: each file is the manifest's, each signature made by the key of its certificate.
    Whether that is a certificate of the federation, `signing.check_signature` tells.
    """

    manifest: Manifest
    content: Mapping[str, bytes]
    signatures: Mapping[str, Signature]

    @property
    def file_name(self) -> str:
        return f"{self.manifest.name}-{_NO_WORD.sub('_', self.manifest.version)}{ARCHIVE}"

    @property
    def text(self) -> bytes:
        """What is signed."""
        return self.manifest.to_bytes()

    def entries(self) -> dict[str, bytes]:
        """Every file by its name in the archive."""
        content = {CONTENT + name: data for name, data in self.content.items()}
        signatures = {SIGNATURES + name: signature.to_bytes() for name, signature in self.signatures.items()}
        return {MANIFEST: self.text, **content, **signatures}

    def to_bytes(self) -> bytes:
        """The archive as a file: equal ones for equal parts."""
        return zipped.write(self.entries())

    def signed(self, signature: Signature) -> Archive:
        """With `signature`, in the place of an earlier one of the same person and role."""
        return replace(self, signatures={**self.signatures, signature_name(signature): signature})


def read_archive(path: Path) -> Archive:
    """The archive in the file `path`. Raises ConfigError or IdentityError, naming the file."""
    try:
        with path.open("rb") as file:
            data = file.read(2 * zipped.MAX_BYTES)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        return parse(zipped.read(data))
    except SovfedError as error:
        raise type(error)(f"{path}: {error}") from error


def parse(entries: Mapping[str, bytes]) -> Archive:
    """The archive of `entries`. Raises ConfigError or IdentityError if a byte is not as manifest and signatures say."""
    for name in entries:
        if name != MANIFEST and not name.startswith((CONTENT, SIGNATURES)):
            raise ConfigError(f"'{name}' has no place in an archive of a task")
    if MANIFEST not in entries:
        raise ConfigError(f"no {MANIFEST}, so no archive of a task")
    manifest = read_manifest(entries[MANIFEST])
    content = {name.removeprefix(CONTENT): data for name, data in entries.items() if name.startswith(CONTENT)}
    check_content(manifest, content)
    signatures = dict(_signatures(entries))
    if len(signatures) > MOST_SIGNATURES:
        raise ConfigError(f"{len(signatures)} signatures, at most {MOST_SIGNATURES} are taken")
    return Archive(manifest, content, signatures)


def check_content(manifest: Manifest, content: Mapping[str, bytes]) -> None:
    """Raise ConfigError unless `content` is exactly what `manifest` lists."""
    zipped.check_names(manifest.files)
    if missing := sorted(manifest.files.keys() - content.keys()):
        raise ConfigError(f"'{missing[0]}' is in the manifest and not in the archive")
    if unlisted := sorted(content.keys() - manifest.files.keys()):
        raise ConfigError(f"'{unlisted[0]}' is in the archive and not in its manifest")
    for name, entry in manifest.files.items():
        if len(content[name]) != entry.size or hashlib.sha256(content[name]).hexdigest() != entry.sha256:
            raise ConfigError(f"'{name}' was changed: its SHA-256 is not that of the manifest")
    if manifest.kind == YAML and set(content) != {TASK_FILE}:
        raise ConfigError(f"a task as data is one file, {TASK_FILE}")
    if (manifest.kind == YAML) != (manifest.entry == ""):
        raise ConfigError(f"kind '{manifest.kind}' with entry '{manifest.entry}': code has an entry, and data has none")
    if strange := sorted(manifest.settings.keys() - SETTINGS):
        raise ConfigError(f"'{strange[0][:64]}' is no setting that a task recommends to a run")


def signature_name(signature: Signature) -> str:
    """The name of its file: a publisher has one, each reviewer another."""
    person, _ = certified(signature, "signature")
    return f"{signature.role}.json" if signature.role == PUBLISHER else f"{signature.role}-{person}.json"


def _signatures(entries: Mapping[str, bytes]) -> Iterator[tuple[str, Signature]]:
    for name, data in entries.items():
        if name.startswith(SIGNATURES):
            signature = read_signature(data, name)
            check_key(signature, entries[MANIFEST], name)
            if SIGNATURES + signature_name(signature) != name:
                raise ConfigError(f"'{name}' holds the signature that belongs in '{signature_name(signature)}'")
            yield name.removeprefix(SIGNATURES), signature
