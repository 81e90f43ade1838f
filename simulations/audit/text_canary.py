"""Does a language model give away lines that it was trained on? Canaries with one, four and sixteen copies.

    exposure    Carlini, Liu, Erlingsson, Kos, Song 2019, arXiv:1802.08232, definition 4.1: log₂|R| − log₂ rank, the
                rank of a canary's likelihood among lines that were never trained on. A line that was not either has
                1.44 bits on average, and t bits or more with probability 2^−t at most
    extraction  whether greedy decoding completes a canary from its first half, to the letter

Models are trained by the shipped coordinator and trainers, under secure aggregation. What (ε, δ) grants an attacker is
much at ε = 8: t bits or more with probability e^ε · 2^−t + δ. So canaries that are not found say more than the claim,
and no exposure that this audit can see would contradict it.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import numpy.typing as npt

from sovfed.federation.models.generation import Drawing, log_p, written
from sovfed.simulations.api import simulate
from sovfed.simulations.audit.canary_texts import COPIES, LENGTH, Field, make_field, task_of
from sovfed.simulations.audit.report import Case, Findings

if TYPE_CHECKING:
    from sovfed.federation.tasks.decoder import Decoder
    from sovfed.federation.tasks.tokenizer import Tokenizer

EPSILON: Final = 8.0
CHANCE: Final = 1 / math.log(2)  # bits, of a line that was never trained on
FOUND: Final = 1e-6  # canaries are found if as much exposure is less probable than this by chance
LITTLE_NOISE: Final = 0.25  # noise multiplier of a control that is sold as ε = 8, whose own is near 1
PLAIN, PRIVATE, GOLDFISH = "without privacy", f"ε = {EPSILON:g}", "goldfish"
LITTLE, APART = "control, little noise", f"control, {PRIVATE} of each copy alone"
WORDS: Final = {PLAIN: "plain", PRIVATE: "private", LITTLE: "little_noise", APART: "apart", GOLDFISH: "goldfish"}
RECIPE: Final[dict[str, Any]] = {
    "strategy": "fedsgd", "secagg": "full", "client": "cpu", "task.beta_2": 0.95, "task.batch_size": 24,
    "server.min_cohort": 3, "privacy.colluders": 0,
}  # fmt: skip
LEARNING: Final = {
    "task.optimizer": "muon", "task.learning_rate": 0.02, "task.schedule": "wsd", "task.warmup": 0.05,
}  # fmt: skip
NOISED: Final = {
    "task.optimizer": "adamw", "task.learning_rate": 0.01, "privacy": "distributed", "privacy.delta": 1e-4,
    "privacy.sampling_rate": 0.1,
}  # fmt: skip
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Size:
    """Documents of an institution, canaries for each number of copies, rounds without privacy and with."""

    documents: int = 2_000
    canaries: int = 12
    references: int = 4_095
    rounds: int = 1_000
    private_rounds: int = 200


QUICK: Final = Size(documents=500, canaries=8, rounds=300, private_rounds=100)


@dataclass(frozen=True)
class Exposed:
    """The canaries of so many `copies` under a model: their exposures in bits, and how many it completes.

    `persons` are those that one canary's copies belong to, `p_value` the probability of as much exposure by chance.
    """

    model: str
    copies: int
    persons: int
    exposures: tuple[float, ...]
    p_value: float
    extracted: int
    bits_per_byte: float

    @property
    def mean(self) -> float:
        return float(np.mean(self.exposures))

    def __str__(self) -> str:
        return (
            f"{self.model}, copies {self.copies}, persons {self.persons}: exposure {self.mean:.1f} bits ± "
            f"{np.std(self.exposures, ddof=1):.1f}, p = {self.p_value:.2g}; {self.extracted} of {len(self.exposures)} "
            "completed"
        )


def run_text(data: Path | None, *, quick: bool, alone: bool, goldfish: int, size: Size | None = None) -> Findings:
    """A case for each model and number of copies. `alone`: all copies of a canary are one person's.

    A control has the same private training with little noise; or, if `alone`, with each copy a person by itself.
    """
    size = size or (QUICK if quick else Size())
    with tempfile.TemporaryDirectory() as folder:
        field, control = (_field(Path(folder) / name, data, size, each) for name, each in (("a", alone), ("b", False)))
        private = {"privacy.epsilon": EPSILON}
        weaker, settings = (APART, private) if alone else (LITTLE, {"privacy.noise_multiplier": LITTLE_NOISE})
        exposed = {
            PLAIN: audit_texts(field, PLAIN, LEARNING, size.rounds),
            PRIVATE: audit_texts(field, PRIVATE, _noised(field) | private, size.private_rounds),
            weaker: audit_texts(control, weaker, _noised(control) | settings, size.private_rounds),
        }
        if goldfish:
            exposed[GOLDFISH] = audit_texts(field, f"{GOLDFISH} {goldfish}", LEARNING, size.rounds, goldfish)
    return Findings([_case(each, exposed) for group in exposed.values() for each in group], _ratios(exposed))


def _field(folder: Path, data: Path | None, size: Size, alone: bool) -> Field:
    return make_field(
        folder, data, documents=size.documents, canaries=size.canaries, references=size.references, alone=alone
    )


def _noised(field: Field) -> dict[str, Any]:
    return {**NOISED, "privacy.population": field.persons}


def audit_texts(field: Field, name: str, settings: Mapping[str, Any], rounds: int, goldfish: int = 0) -> list[Exposed]:
    """Train a model on `field` and look for its canaries, a result for each number of copies."""
    task = task_of(field.tokenizer, goldfish)
    asked = {"evaluate_every": rounds, **RECIPE, **settings}
    result = simulate(task, dict(field.sites), rounds=rounds, settings=asked)
    module = cast("Decoder", result.model)
    references = log_p(module, field.tokenizer, field.canaries.references)
    exposed = []
    for copies, lines in field.canaries.inserted.items():
        bits = exposures(log_p(module, field.tokenizer, lines), references)
        completed = sum(completes(module, field.tokenizer, line) for line in lines)
        persons = 1 if field.alone else copies
        bits_per_byte = result.metrics["bits_per_byte"]
        exposed.append(Exposed(name, copies, persons, tuple(bits), by_chance(bits), completed, bits_per_byte))
    return exposed


def exposures(scores: Floats, references: Floats) -> Floats:
    """Bits [n] of lines with log p `scores` [n] among `references` [r] and each itself; a tie ranks behind."""
    ranks = 1 + (references >= scores[:, None]).sum(1)
    bits: Floats = np.log2(len(references) + 1) - np.log2(ranks)
    return bits


def by_chance(bits: Floats) -> float:
    """At least the probability that lines never trained on have so many `bits` together, were they independent.

    Each has t or more with probability 2^−t at most, so it is at most exponential; they share their references, which
    are many.
    """
    from scipy.stats import gamma

    return float(gamma.sf(bits.sum() / CHANCE, len(bits)))


def completes(module: Decoder, tokenizer: Tokenizer, line: str) -> bool:
    """Whether greedy decoding writes the second half of `line` behind the first, to the letter."""
    half = len(line) // 2
    text = "".join(written(module, tokenizer, line[:half], Drawing(tokens=LENGTH, temperature=0.0)))
    return text.startswith(line[half:])


def _case(exposed: Exposed, every: Mapping[str, list[Exposed]]) -> Case:
    """What is held against it: a control must be found, one person's canaries not, goldfish complete less."""
    sentence, most = str(exposed), exposed.copies == max(COPIES)
    if exposed.model == PRIVATE:
        if exposed.persons > 1:
            return exposed, f"limit, {sentence}: ε is of one person", True
        return exposed, sentence, exposed.p_value >= FOUND and not exposed.extracted
    if exposed.model in (PLAIN, LITTLE, APART):
        return exposed, sentence, exposed.p_value < FOUND or not most
    return exposed, sentence, _completed(every[GOLDFISH]) < _completed(every[PLAIN]) or not most


def _completed(exposed: Sequence[Exposed]) -> int:
    return sum(each.extracted for each in exposed)


def _ratios(every: Mapping[str, list[Exposed]]) -> dict[str, float]:
    ratios = {"exposure_by_chance": CHANCE}
    for name, group in every.items():
        ratios |= {f"exposure_{WORDS[name]}_{each.copies}": each.mean for each in group}
        ratios |= {f"completed_{WORDS[name]}": float(_completed(group)), f"bpb_{WORDS[name]}": group[0].bits_per_byte}
    return ratios
