"""What a role needs, in the versions that are installed and working here: the lock file of a bundle."""

from __future__ import annotations

import importlib.metadata as metadata
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sovfed.federation.errors import ConfigError

OURS: Final = "sovfed"
ROLES: Final = {"institution": (), "agency": ("server",)}  # by role, the extras
CPU: Final = "+cpu"
_GRAPHICS: Final = ("nvidia-", "triton", "cuda-")  # what a torch for graphics processors brings along


def locked(role: str, extras: tuple[str, ...] = (), *, cpu: bool = True) -> dict[str, str]:
    """By name, the version of everything that `role` with `extras` needs, ourselves left out.

    With `cpu` torch is the build without CUDA's libraries, whichever is installed here. Raises ConfigError for what is
    needed and not installed.
    """
    versions = dict[str, str]()
    _add(Requirement(f"{OURS}[{','.join((*ROLES[role], *extras))}]"), versions)
    del versions[OURS]
    if cpu:
        versions = {name: version for name, version in versions.items() if not name.startswith(_GRAPHICS)}
        versions["torch"] = versions["torch"].partition("+")[0] + CPU
    return dict(sorted(versions.items()))


def _add(requirement: Requirement, versions: dict[str, str], seen: set[str] | None = None) -> None:
    seen = set() if seen is None else seen
    name = canonicalize_name(requirement.name)
    wanted = requirement.extras or {""}
    if seen >= {f"{name}[{extra}]" for extra in wanted}:
        return
    seen |= {f"{name}[{extra}]" for extra in wanted}
    try:
        distribution = metadata.distribution(requirement.name)
    except metadata.PackageNotFoundError as error:
        raise ConfigError(f"{requirement} is not installed here; a bundle holds what was tried") from error
    versions[name] = distribution.version
    for text in distribution.requires or ():
        needed = Requirement(text)
        if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in {"", *wanted}):
            _add(needed, versions, seen)


def lock_text(versions: dict[str, str]) -> str:
    """A requirements file that names each version."""
    return "".join(f"{name}=={version}\n" for name, version in versions.items())
