"""What there is to see of an archive: for who reviews it, and for who adds it."""

from __future__ import annotations

import dataclasses
import difflib
import json
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.archive.manifest import PACKAGE
from sovfed.federation.archive.signing import certified
from sovfed.federation.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sovfed.federation.archive.archive import Archive
    from sovfed.federation.archive.manifest import Manifest
    from sovfed.federation.tasks.columns import Schema


PRIVATE: Final = "a person's gradient can be clipped: private runs are possible"


def shown(archive: Archive) -> Iterator[str]:
    """The archive in lines: task, columns, model, files, requirements, privacy, and whose signatures it bears."""
    manifest = archive.manifest
    yield f"task {manifest.name}, version {manifest.version}: {manifest.title}"
    yield f"digest {manifest.digest}"
    yield from (f"  {line}" for line in columns(manifest.schema))
    trained = sum(tensor.trained for tensor in manifest.parameters)
    yield f"model of {manifest.values:,} values in {len(manifest.parameters)} tensors, {trained} of them trained"
    yield f"metrics: {', '.join(manifest.metrics)}; {manifest.headline} first"
    yield f"privacy: {'; '.join(manifest.privacy) or PRIVATE}"
    if manifest.kind == PACKAGE:
        yield f"code: {manifest.entry}, which runs in the trainer"
        yield from (
            f"  asks for {requirement.text} (tried with {requirement.tried})" for requirement in manifest.requires
        )
    yield from (f"  {entry.size:>9,} bytes  {name}" for name, entry in sorted(manifest.files.items()))
    yield f"licence: {manifest.licence or 'none is named'}"
    yield from signers(archive)


def signers(archive: Archive) -> Iterator[str]:
    """Whose certificates the signatures show: each was made by the key of its certificate, and no more is said."""
    for name, signature in sorted(archive.signatures.items()):
        person, organisation = certified(signature, name)
        yield f"signature of a {signature.role}: {person} of {organisation}, certified by whom is seen when it is added"


def columns(schema: Schema) -> Iterator[str]:
    """Each column of `schema` in a line."""
    for column in schema.columns:
        values = ", ".join(column.categories[:8]) or f"{column.reach} {column.unit}".strip()
        missing = "" if column.missing == "refuse" else f"; missing: {column.missing}"
        yield f"{column.role:6} {column.name}: {column.kind}, {values}{missing}"


def difference(old: Archive, new: Archive) -> Iterator[str]:
    """What differs, as a unified diff of every text file and of the manifests; nothing where nothing does."""
    yield from _text(_plain(old.manifest), _plain(new.manifest), "manifest.json")
    for name in sorted({*old.content, *new.content}):
        before, after = old.content.get(name, b""), new.content.get(name, b"")
        if before == after:
            continue
        texts = _decoded(before), _decoded(after)
        if texts[0] is None or texts[1] is None:
            yield f"binary file {name}: {len(before):,} bytes, then {len(after):,}"
        else:
            yield from _text(texts[0], texts[1], name)


def _text(before: str, after: str, name: str) -> Iterator[str]:
    """Lines end at a newline alone, as for Python: one that ends otherwise to the eye shows what it is."""
    lines = difflib.unified_diff(before.split("\n"), after.split("\n"), f"old/{name}", f"new/{name}", lineterm="")
    yield from (visible(line) for line in lines)


def _plain(manifest: Manifest) -> str:
    """The manifest without what follows from the files."""
    values: dict[str, Any] = dataclasses.asdict(manifest)
    values["files"] = sorted(values["files"])
    return json.dumps(values, sort_keys=True, indent=1)


def _decoded(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None
