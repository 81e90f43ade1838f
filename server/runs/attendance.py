"""Who took part in a run, who kept it waiting and who refused, by institution; from its rounds as they were written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sovfed.server.rounds.refusals import ADVICE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

NAMED: Final = "`sovfed run logs` at the agency names the setting too"


def attendance(lines: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By institution, in order of names: rounds in whose sum it was, was waited for in vain, or was not asked.

    `refused` counts its refusals by code. Whoever is never named took no part and was never asked.
    """
    by_name: dict[str, dict[str, Any]] = {}

    def entry(name: str) -> dict[str, Any]:
        return by_name.setdefault(name, {"rounds": 0, "late": 0, "left_out": 0, "refused": {}})

    for line in lines:
        for key, names in (("rounds", "participants"), ("late", "late"), ("left_out", "left_out")):
            for name in line.get(names, ()):
                entry(name)[key] += 1
        for name, code in line.get("refused", {}).items():
            codes = entry(name)["refused"]
            codes[code] = codes.get(code, 0) + 1
    return dict(sorted(by_name.items()))


def participants(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """The institutions that were in the sum of any round, sorted."""
    return sorted({name for line in lines for name in line["participants"]})


def missed_by(lines: Sequence[Mapping[str, Any]], name: str) -> int:
    """How many of the last rounds went without `name`."""
    return next((number for number, line in enumerate(reversed(lines)) if name in line["participants"]), len(lines))


def absences(by_name: Mapping[str, Mapping[str, Any]], rounds: int) -> list[str]:
    """A sentence for each institution that was not in the sum of every round, and what to do where it refused."""
    return [_sentence(name, entry, rounds) for name, entry in by_name.items() if entry["rounds"] < rounds]


def _sentence(name: str, entry: Mapping[str, Any], rounds: int) -> str:
    parts = [f"late in {entry['late']}"] if entry["late"] else []
    parts += [f"left out of {entry['left_out']}"] if entry["left_out"] else []
    parts += [f"refused {count} ({code})" for code, count in sorted(entry["refused"].items())]
    told = [f"{name}: in {entry['rounds']} of {rounds} rounds", *([", ".join(parts)] if parts else [])]
    told += [ADVICE[code] for code in sorted(entry["refused"]) if code in ADVICE]
    return "; ".join(told + ([NAMED] if "bound" in entry["refused"] else []))
