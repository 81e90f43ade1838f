"""From a task.yaml, a wheel or a project that builds one to an archive that its publisher has signed."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sovfed.federation.archive.archive import TASK_FILE, Archive
from sovfed.federation.archive.manifest import PACKAGE, YAML, Manifest, Requirement, listed
from sovfed.federation.archive.signing import PUBLISHER
from sovfed.federation.archive.trial import Description, described
from sovfed.federation.archive.unpacked import unpacked
from sovfed.federation.archive.wheel import brought, check_modules, check_requirements, read_wheel
from sovfed.federation.errors import ConfigError
from sovfed.federation.schema import nearest
from sovfed.federation.tasks.document import parse
from sovfed.federation.tasks.shelf import read_bounded
from sovfed.federation.text import visible

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sovfed.federation.archive.signer import SigningKey
    from sovfed.federation.archive.wheel import Brought

YAML_SUFFIXES: Final = (".yaml", ".yml")
BUILD_S: Final = 600
LEFT_OUT: Final = (".*", "build", "dist", "*.egg-info", "__pycache__", "venv")
CONF: Final = "sovfed.conf"


def pack(source: Path, key: SigningKey, task: str = "", *, unsealed: bool = False) -> tuple[Archive, Description]:
    """The archive of `source`, signed by its publisher `key`, and what its trial told.

    `task` chooses one of several that a package brings. Raises ConfigError for what cannot be packed, or does not work.
    """
    if source.suffix in YAML_SUFFIXES:
        archive, description = _as_data(read_bounded(source), unsealed=unsealed)
    else:
        archive, description = _as_package(files_of(source), task, unsealed=unsealed)
    if not description.held:
        wrong = next(check for check in description.checks if not check.held)
        raise ConfigError(f"{source}: {wrong.what}: {wrong.detail}; `sovfed task check` tells all")
    return archive.signed(key.sign(archive.text, PUBLISHER)), description


def files_of(source: Path) -> dict[str, bytes]:
    """The files of a wheel, or of the wheel that the project in the folder `source` builds. Raises ConfigError."""
    if not source.is_dir():
        return read_wheel(source)
    with tempfile.TemporaryDirectory(prefix="sovfed-build-") as scratch:
        project, wheels = Path(scratch) / "project", Path(scratch) / "wheels"
        shutil.copytree(source, project, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
        return read_wheel(_build(project, wheels))


def trial_of(archive: Archive, *, unsealed: bool = False) -> Description:
    """What a sealed child tells of the archive's task. Raises ConfigError if the manifest says another thing."""
    manifest = archive.manifest
    with unpacked(archive.content) as folder:
        description = described(folder, manifest.digests, manifest.entry, unsealed=unsealed)
    derived = _manifest(description, archive, manifest.requires, manifest.settings)
    for name in ("name", "version", "title", "digest", "schema", "parameters", "values", "metrics", "headline"):
        if getattr(derived, name) != getattr(manifest, name):
            raise ConfigError(f"the manifest says another '{name}' than the task has")
    return description


def _as_data(text: bytes, *, unsealed: bool) -> tuple[Archive, Description]:
    content = {TASK_FILE: text}
    draft = _draft(content, YAML, "")
    description = _tried(draft, unsealed=unsealed)
    return Archive(_manifest(description, draft, (), description.settings), content, {}), description


def _as_package(content: Mapping[str, bytes], task: str, *, unsealed: bool) -> tuple[Archive, Description]:
    bringing = brought(content)
    check_modules(bringing.modules)
    tried = check_requirements(bringing.requires)
    requires = tuple(Requirement(text, tried.get(text, "")) for text in bringing.requires)
    name, entry = _chosen(bringing, task)
    draft = _draft(content, PACKAGE, entry)
    description = _tried(draft, unsealed=unsealed)
    if description.name != name:
        raise ConfigError(f"the entry point '{name}' brings a task that is called '{description.name}'")
    return Archive(
        _manifest(description, draft, requires, _settings(content, bringing, name)), content, {}
    ), description


def _draft(content: Mapping[str, bytes], kind: str, entry: str) -> Archive:
    """An archive of `content` of whose task nothing is known yet."""
    from sovfed.federation.tasks.columns import Schema

    manifest = Manifest(
        schema=Schema(()), name="draft", title="draft", digest="0" * 64, headline="draft", kind=kind, entry=entry,
        files=listed(content),
    )  # fmt: skip
    return Archive(manifest, content, {})


def _tried(draft: Archive, *, unsealed: bool) -> Description:
    with unpacked(draft.content) as folder:
        return described(folder, draft.manifest.digests, draft.manifest.entry, unsealed=unsealed)


def _manifest(
    description: Description, archive: Archive, requires: tuple[Requirement, ...], settings: Mapping[str, str]
) -> Manifest:
    return Manifest(
        name=description.name, title=description.title, digest=description.digest, schema=description.schema,
        headline=description.headline, version=description.version, kind=archive.manifest.kind,
        entry=archive.manifest.entry, files=archive.manifest.files, parameters=description.parameters,
        values=description.values, metrics=description.metrics, evaluation_size=description.evaluation_size,
        requires=requires, settings=dict(settings), checks=description.checks, privacy=description.privacy,
        licence=description.licence, citation=description.citation,
    )  # fmt: skip


def _chosen(bringing: Brought, task: str) -> tuple[str, str]:
    """Name and place of the task to pack."""
    tasks = bringing.tasks
    if not tasks:
        raise ConfigError("the package brings no task: it needs an entry point 'sovfed.tasks' (docs/own-package.md)")
    if not task and len(tasks) > 1:
        raise ConfigError(
            f"the package brings {len(tasks)} tasks; choose one of {', '.join(sorted(tasks))} with --task"
        )
    name = task or next(iter(tasks))
    if name not in tasks:
        raise ConfigError(f"the package brings no task '{name[:64]}'{nearest(name, tasks)}")
    return name, tasks[name]


def _settings(content: Mapping[str, bytes], bringing: Brought, name: str) -> dict[str, str]:
    """What the package's own conf/task/NAME.yaml recommends to a run."""
    settings: dict[str, str] = {}
    for point in bringing.points:
        file = f"{point.value.replace('.', '/')}/task/{name}.yaml"
        if point.group == CONF and file in content:
            settings |= {key: json.dumps(value) for key, value in parse(content[file]).items() if key != "name"}
    return settings


def _build(project: Path, wheels: Path) -> Path:
    """The one wheel of `project`."""
    if not any((project / name).is_file() for name in ("pyproject.toml", "setup.py")):
        raise ConfigError("the folder is no project: it has no pyproject.toml")
    offline = ["--no-build-isolation"] if importlib.util.find_spec("setuptools") else []
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel", "--no-deps", *offline]
    completed = subprocess.run(
        [*command, "--wheel-dir", str(wheels), str(project)], capture_output=True, timeout=BUILD_S, check=False
    )
    built = sorted(wheels.glob("*.whl")) if wheels.is_dir() else []
    if completed.returncode or len(built) != 1:
        raise ConfigError(f"the project builds no wheel: {visible(completed.stderr.decode(errors='replace')[-2000:])}")
    return built[0]
