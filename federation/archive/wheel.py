"""What of a wheel may become a task: pure Python, small, and no module that anything here is called already."""

from __future__ import annotations

import configparser
import sys
import zipfile
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.metadata import Distribution, PackageNotFoundError, version
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from packaging.requirements import InvalidRequirement, Requirement

from sovfed.federation.archive import zipped
from sovfed.federation.errors import ConfigError
from sovfed.federation.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from importlib.metadata import EntryPoint
    from importlib.metadata._meta import SimplePath
    from pathlib import Path

INFO: Final = ".dist-info"
GROUP: Final = "sovfed.tasks"
OURS: Final = "sovfed."
PURE: Final = "py3-none-any.whl"
COMPILED: Final = frozenset(
    {".so", ".pyd", ".dll", ".dylib", ".a", ".o", ".pyc", ".pyo", ".pth", ".egg", ".whl", ".zip"}
)


@dataclass(frozen=True)
class Brought:
    """What a wheel says of itself: its entry points, what it asks for, and the modules that it brings."""

    points: tuple[EntryPoint, ...]
    requires: tuple[str, ...]
    modules: tuple[str, ...]

    @property
    def tasks(self) -> dict[str, str]:
        """module:NAME of each task by its name."""
        return {point.name: point.value for point in self.points if point.group == GROUP}


class _Wheel(Distribution):
    """The metadata of a wheel that is not on disk."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files

    def read_text(self, filename: str) -> str | None:
        data = self._files.get(filename)
        return None if data is None else data.decode()

    def locate_file(self, path: object) -> SimplePath:
        raise FileNotFoundError(str(path))


def read_wheel(path: Path) -> dict[str, bytes]:
    """The files of the wheel `path`, whose sizes are bounded before one is read. Raises ConfigError."""
    if not path.name.endswith(PURE):
        raise ConfigError(f"{path.name}: not pure Python for every machine, expected NAME-VERSION-{PURE}")
    try:
        with zipfile.ZipFile(path) as file:
            infos = [info for info in file.infolist() if not info.is_dir()]
            zipped.check_names(info.filename for info in infos)
            if sum(info.file_size for info in infos) > zipped.MAX_BYTES:
                raise ConfigError(f"{path.name}: more than {zipped.MAX_BYTES >> 20} MiB unpacked")
            return {info.filename: file.read(info) for info in infos}
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, ValueError, EOFError) as error:
        raise ConfigError(f"{path}: not a wheel: {visible(str(error), keep='')}") from error


def brought(content: Mapping[str, bytes]) -> Brought:
    """What the files of a wheel bring. Raises ConfigError for what no task may bring."""
    check_pure(content)
    (info,) = _infos(content)
    try:
        wheel = _Wheel({name.removeprefix(f"{info}/"): data for name, data in content.items()})
        points, requires = tuple(wheel.entry_points), tuple(wheel.requires or ())
    except (ValueError, KeyError, AttributeError, TypeError, configparser.Error) as error:
        raise ConfigError(f"{info}: its entry points or metadata cannot be read") from error
    if strangers := [point.group for point in points if not point.group.startswith(OURS)]:
        raise ConfigError(f"entry points of '{strangers[0][:64]}': a task's package brings those of sovfed alone")
    return Brought(points, requires, modules_of(content))


def check_pure(content: Mapping[str, bytes]) -> None:
    """Raise ConfigError unless `content` is a wheel of Python sources and data, all in packages of its own."""
    for name in content:
        path = PurePosixPath(name)
        if path.suffix.lower() in COMPILED or ".data" in path.parts[0][-5:] or "__pycache__" in path.parts:
            raise ConfigError(f"'{name}': a task's package holds Python sources and data, in folders that are packages")
    infos = _infos(content)
    if len(infos) != 1:
        raise ConfigError(f"{len(infos)} folders NAME-VERSION{INFO}, expected one: not a wheel")


def modules_of(content: Iterable[str]) -> tuple[str, ...]:
    """The names that the files of a wheel can be imported by: their first words."""
    tops = {PurePosixPath(name).parts[0] for name in content}
    return tuple(sorted(top.removesuffix(".py") for top in tops if not top.endswith(INFO)))


def check_modules(modules: Iterable[str]) -> None:
    """Raise ConfigError if one of `modules` is Python's, ours, or an installed package's already."""
    for name in modules:
        if not name.isidentifier() or name.startswith("__"):
            raise ConfigError(f"'{name}' is no name of a module")
        reserved = name in sys.stdlib_module_names or name in sys.modules or name == OURS.rstrip(".")
        if reserved or PathFinder.find_spec(name) is not None:
            raise ConfigError(
                f"module '{name}': there is one of that name here already, and a task shadows none; give the package "
                f"another name, or uninstall it where it was installed by hand"
            )


def check_requirements(requires: Iterable[str]) -> dict[str, str]:
    """The installed version for each requirement that holds for this machine. Raises ConfigError if one is not met."""
    met = {}
    for text in requires:
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise ConfigError(f"requirement {visible(text[:80], keep='')!r} cannot be read") from error
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        met[text] = _installed(requirement)
    return met


def _installed(requirement: Requirement) -> str:
    try:
        installed = version(requirement.name)
    except PackageNotFoundError as error:
        raise ConfigError(f"the package asks for '{requirement}', which is not installed here") from error
    if not requirement.specifier.contains(installed, prereleases=True):
        raise ConfigError(f"the package asks for '{requirement}', installed here is {installed}")
    return installed


def _infos(content: Iterable[str]) -> set[str]:
    return {top for name in content if (top := PurePosixPath(name).parts[0]).endswith(INFO)}
