"""What an institution says of the records of a study to the world; no record, count or person."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sovfed.federation.schema import bounded, choice

SIZES: Final = ("", "below 1,000", "1,000 to 10,000", "10,000 to 100,000", "100,000 to 1,000,000", "above 1,000,000")


@dataclass(frozen=True)
class ContentConfig:
    """A study's description, which `sovfed client release declare` signs; all of it is for the public."""

    kind: str = bounded("", 0, 200, doc="what the records are, as: laboratory values, discharge letters")
    population: str = bounded("", 0, 200, doc="whose they are, as: adults admitted for chest pain")
    period: str = bounded("", 0, 100, doc="of which years, as: 2015 to 2024")
    language: str = bounded("", 0, 100, doc="of texts: de; ja, en")
    origin: str = bounded("", 0, 200, doc="where they come from, as: own care, public register")
    basis: str = bounded("", 0, 300, doc="licence or legal basis")
    size: str = choice("", SIZES, doc="about how many; left out unless policy.yaml says declare_size")
