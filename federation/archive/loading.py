"""The one place that imports a package out of an archive: from its folder alone, every source checked as it is read.

A module comes from the folder where the archive is unpacked, compiled from bytes whose SHA-256 is the manifest's; no
compiled file is read or written. The folder is on no path, so nothing else can be imported from it, and its modules are
taken for no others. A second version of a package is refused: Python knows a module by its name alone.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import FileFinder, ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation import plugins
from sovfed.federation.archive.archive import TASK_FILE
from sovfed.federation.archive.manifest import content_digest
from sovfed.federation.archive.wheel import GROUP, brought, check_modules
from sovfed.federation.errors import ConfigError
from sovfed.federation.tasks import Task
from sovfed.federation.tasks.declared import task_from_text

if TYPE_CHECKING:
    from types import CodeType, ModuleType

SETTINGS: Final = "sovfed.conf"  # what of these a run is recommended stands in the manifest


@dataclass(frozen=True)
class Package:
    """The files of an archive: where they lie, and the SHA-256 of each by its name."""

    folder: Path
    digests: Mapping[str, str]

    @property
    def digest(self) -> str:
        return content_digest(self.digests)

    def read(self, name: str) -> bytes:
        """The bytes of the file `name`. Raises ConfigError unless they are the manifest's."""
        try:
            data = (self.folder / name).read_bytes()
        except OSError as error:
            raise ConfigError(f"{self.folder / name}: cannot be read ({error.strerror})") from error
        if hashlib.sha256(data).hexdigest() != self.digests.get(name):
            raise ConfigError(f"{self.folder / name}: changed since it was checked")
        return data


class Loader(SourceFileLoader):
    """Compiles a module from its checked source, each time anew; as UTF-8, which is how it was read by reviewers."""

    package: Package

    def get_code(self, fullname: str) -> CodeType:
        """The code of the module. Raises ConfigError if its source is not the manifest's, or no UTF-8."""
        path = Path(self.get_filename(fullname))
        source = self.package.read(path.relative_to(self.package.folder).as_posix())
        try:
            text = source.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: Python source that is not UTF-8") from error
        return compile(text, str(path), "exec", dont_inherit=True)  # of text, no line in it says how it is coded


class Finder(MetaPathFinder):
    """Finds the modules of one package, and no others; a name beneath them that it does not have is nowhere."""

    def __init__(self, package: Package, modules: Sequence[str]) -> None:
        self.package, self.modules = package, frozenset(modules)
        self._loader = type("Loader", (Loader,), {"package": package})

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module `fullname`; None where it is another package's. Raises ModuleNotFoundError for a missing one."""
        if fullname.partition(".")[0] not in self.modules:
            return None
        for folder in [str(self.package.folder)] if path is None else path:
            spec = FileFinder(folder, (self._loader, [".py"])).find_spec(fullname)
            if spec is not None and self._own(spec):
                return spec
        raise ModuleNotFoundError(f"No module named {fullname!r} in {self.package.folder}", name=fullname)

    def _own(self, spec: ModuleSpec) -> bool:
        """Whether all of the module lies in the package's folder."""
        paths = [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.origin else [])]
        return all(Path(path).is_relative_to(self.package.folder) for path in paths)


def load_task(folder: Path, digests: Mapping[str, str], entry: str) -> Task:
    """The task of the archive whose files lie in `folder`: a task.yaml, or what `entry` (module:NAME) is in a package.

    Its `code` is the digest of all files, so its digest stands for every byte of them. Raises ConfigError.
    """
    package = Package(folder, digests)
    if not entry:
        return task_from_text(package.read(TASK_FILE))
    module, _, name = entry.partition(":")
    if module.partition(".")[0] not in _open(package):
        raise ConfigError(f"'{entry}' is in no module of the package")
    try:
        task: Any = import_module(module)
        for word in name.split("."):
            task = getattr(task, word)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # the package's own
        raise ConfigError(f"'{entry}' cannot be loaded: {error!r}") from error
    if not isinstance(task, Task):
        raise ConfigError(f"'{entry}' is a {type(task).__name__}, expected a Task")
    return replace(task, code=package.digest)


def _open(package: Package) -> frozenset[str]:
    """Let the modules of `package` be imported, and what else it brings be known by its name; the modules' names."""
    bringing = brought({name: package.read(name) for name in package.digests})
    for finder in sys.meta_path:
        if isinstance(finder, Finder) and (shared := finder.modules & set(bringing.modules)):
            if finder.package.digest == package.digest:
                return finder.modules
            raise ConfigError(
                f"module '{min(shared)}' comes from {finder.package.folder.parent.name} already: two versions of a "
                f"package cannot be used at once; allow one of them"
            )
    check_modules(bringing.modules)
    plugins.bring([point for point in bringing.points if point.group not in (GROUP, SETTINGS)])
    sys.meta_path.insert(0, Finder(package, bringing.modules))
    return frozenset(bringing.modules)
