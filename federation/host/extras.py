"""The optional parts of an installation: which extra brings a library, and what to say where it is not there.

The extras stand in pyproject.toml and nowhere else; here they are read from the metadata of the installed distribution.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Final

from sovfed.federation.errors import ConfigError

PROJECT: Final = "sovfed"
DISTRIBUTIONS: Final = {  # of modules that are not called as what brings them
    "cyclonedx": "cyclonedx-python-lib",
    "hydra": "hydra-core",
    "ray": "flwr",
    "sklearn": "scikit-learn",
    "sovfed.simulations.audit": "sovfed-bench",
    "sovfed.simulations.benchmarks": "sovfed-bench",
}
NOT_OFFERED: Final = "dev"  # an extra for who works on sovfed itself
_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")


@cache
def extras() -> dict[str, frozenset[str]]:
    """The distributions that each extra brings, those of extras that it includes with them; {} if not installed."""
    direct: dict[str, set[str]] = {}
    try:
        lines = requires(PROJECT) or []
    except PackageNotFoundError:  # files that are run where they lie
        lines = []
    for line in lines:
        requirement, _, marker = line.partition(";")
        for extra in re.findall(r"""extra\s*==\s*['"]([^'"]+)['"]""", marker):
            direct.setdefault(extra, set()).add(requirement.strip())
    return {extra: frozenset(_closure(extra, direct)) for extra in direct if extra != NOT_OFFERED}


def _closure(extra: str, direct: dict[str, set[str]]) -> set[str]:
    names: set[str] = set()
    for requirement in direct.get(extra, ()):
        name = _distribution(requirement)
        if name == PROJECT:
            names |= _closure(requirement.partition("[")[2].partition("]")[0], direct)
        else:
            names.add(name)
    return names


def _distribution(requirement: str) -> str:
    match = _NAME.match(requirement)
    return match.group().lower().replace("_", "-") if match else ""


def advice(module: str, preferred: str = "") -> str:
    """One line that says how to install the missing `module`; "" if no extra brings it.

    Of several extras that do, `preferred`, the one that the command belongs to, else the smallest.
    """
    distribution = _brought_by(module)
    offers = {extra: names for extra, names in extras().items() if distribution in names}
    if not offers:
        return ""
    extra = preferred if preferred in offers else min(offers, key=lambda name: len(offers[name]))
    missing = distribution if module.startswith(PROJECT) else module.partition(".")[0]
    return f"this command needs `pip install '{PROJECT}[{extra}]'` ({missing} is not installed)"


def _brought_by(module: str) -> str:
    for name, distribution in DISTRIBUTIONS.items():
        if module == name or module.startswith(f"{name}."):
            return distribution
    return module.partition(".")[0].lower().replace("_", "-")


def complete() -> dict[str, bool]:
    """Whether all that each extra brings is installed."""
    return {extra: not _missing(extra) for extra in sorted(extras())}


def require(extra: str) -> None:
    """Raise ConfigError unless all that `extra` brings is installed: for a command whose work others do later."""
    if missing := _missing(extra):
        raise ConfigError(advice(missing, extra))


def _missing(extra: str) -> str:
    for distribution in sorted(extras().get(extra, ())):
        try:
            version(distribution)
        except PackageNotFoundError:
            return distribution
    return ""
