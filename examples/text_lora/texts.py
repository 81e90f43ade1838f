"""Short sentences of law in German and Japanese, made from parts by a seed: about taxes, traffic or health."""

from __future__ import annotations

import numpy as np
from text_lora.task import AREAS, LENGTH

_GERMAN = {
    "tax": ("Die Steuer", "Der Freibetrag", "Die Abgabe", "Der Zoll"),
    "traffic": ("Das Fahrzeug", "Die Ampel", "Der Fahrer", "Die Vorfahrt"),
    "health": ("Der Arzt", "Die Klinik", "Das Rezept", "Die Pflege"),
}
_JAPANESE = {
    "tax": ("所得税", "消費税", "関税", "税額"),
    "traffic": ("自動車", "信号機", "運転者", "道路"),
    "health": ("医師", "病院", "処方箋", "看護"),
}
_GERMAN_ENDS = ("ist zu melden.", "wird geprüft.", "gilt ab Januar.", "darf nicht fehlen.", "regelt die Behörde.")
_JAPANESE_ENDS = ("を届け出る。", "を確認する。", "は一月から適用する。", "を定める。", "に関する規則。")


def texts(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Texts as the bytes of UTF-8, each plus one, then zeros [n, 52], and the area of each [n]."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, len(AREAS), count)
    rows = np.zeros((count, LENGTH), np.int16)
    for row, label in zip(rows, labels, strict=True):
        german = generator.random() < 0.5
        subjects = (_GERMAN if german else _JAPANESE)[AREAS[label]]
        ends = _GERMAN_ENDS if german else _JAPANESE_ENDS
        number = f"§ {generator.integers(1, 300)} " if german else f"第{generator.integers(1, 300)}条 "
        text = number + generator.choice(subjects) + (" " if german else "") + generator.choice(ends)
        content = np.frombuffer(text.encode()[:LENGTH], np.uint8)
        row[: len(content)] = content.astype(np.int16) + 1
    return rows, labels
