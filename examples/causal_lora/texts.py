"""Sentences of law in German and Japanese about taxes, traffic or health, made from parts by a seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SUBJECTS = {
    "tax": (("Die Steuer", "Der Freibetrag", "Der Zoll"), ("所得税", "消費税", "関税")),
    "traffic": (("Das Fahrzeug", "Die Ampel", "Der Fahrer"), ("自動車", "信号機", "道路")),
    "health": (("Der Arzt", "Die Klinik", "Das Rezept"), ("医師", "病院", "処方箋")),
}
ENDS = (
    ("ist zu melden.", "wird geprüft.", "gilt ab Januar.", "regelt die Behörde."),
    ("を届け出る。", "を確認する。", "は一月から適用する。", "を定める。"),
)


def sentences(count: int, seed: int = 0, areas: Sequence[str] = ("health",)) -> list[str]:
    """`count` sentences about `areas`."""
    generator = np.random.default_rng(seed)
    return [_sentence(generator, str(generator.choice(areas))) for _ in range(count)]


def _sentence(generator: np.random.Generator, area: str) -> str:
    article, language = generator.integers(1, 300), int(generator.integers(2))
    subject, end = generator.choice(SUBJECTS[area][language]), generator.choice(ENDS[language])
    return f"第{article}条 {subject}{end}\n" if language else f"§ {article} {subject} {end}\n"
