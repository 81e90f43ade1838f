"""What `sovfed audit` prints and writes: each result with what was claimed and what the audit could have seen."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from sovfed.federation.files import write_atomic

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from sovfed.simulations.audit.canary import CanaryAudit


Case: TypeAlias = tuple[Any, str, bool]  # a result (a dataclass), its sentence, whether it is as it should be


@dataclass(frozen=True)
class Findings:
    """An audit's cases, the last ones controls that must be found out, and the figures that its claim is held to."""

    cases: list[Case]
    ratios: dict[str, float] = field(default_factory=dict)


def run_noise(quick: bool) -> Findings:
    """One case a mechanism, and a control with too little noise."""
    from sovfed.simulations.audit.noise import audit_noise

    cases: list[Case] = []
    for mechanism in ("distributed",) if quick else ("distributed", "silo", "institution"):
        result = audit_noise(mechanism)
        sentence = (
            f"{mechanism}: variance {result.ratio:.3f} of the claimed, p = {result.p_value:.2g}; "
            f"{result.detectable:.2f} would be found with 99 %"
        )
        cases.append((result, sentence, not result.contradicted))
    control = audit_noise("distributed", claimed=2.4)
    cases.append(
        (control, f"control, a sixth less noise than claimed: p = {control.p_value:.2g}", control.contradicted)
    )
    return Findings(cases)


def run_canary(quick: bool) -> Findings:
    """As `run_noise`."""
    from sovfed.simulations.audit.canary import SHARES, audit_canaries

    canaries = 5_000 if quick else 20_000
    cases: list[Case] = []
    for noise_multiplier in (5.0, 2.0):
        result = audit_canaries(canaries, noise_multiplier)
        sentence = (
            f"noise multiplier {noise_multiplier:g}, {canaries} canaries: claimed ε = {result.claimed:.2f}, measured "
            f"ε ≥ {result.lower:.2f} (95 %); without noise it would be {result.ceiling:.2f}. {_guesses(result)}; "
            f"{result.detectable:.2f} of the noise would be found with 99 %"
        )
        cases.append((result, sentence, not result.contradicted))
    for label, control in (
        (f"one of {SHARES} shares of noise", audit_canaries(canaries, 2.0, shares_present=1)),
        ("a third less noise than claimed", audit_canaries(canaries, 2.0, actual=4 / 3)),
    ):
        sentence = (
            f"control, {label}: claimed {control.claimed:.2f}, measured ≥ {control.lower:.2f}. {_guesses(control)}"
        )
        cases.append((control, sentence, control.contradicted))
    return Findings(cases)


def _guesses(result: CanaryAudit) -> str:
    return f"{100 * result.right:.1f} % guessed right, allowed {100 * result.allowed:.1f} %, p = {result.p_value:.2g}"


def run_imprint(quick: bool) -> Findings:
    """As `run_noise`."""
    from sovfed.simulations.audit.imprint import audit_imprint

    private, plain = audit_imprint("distributed"), audit_imprint("none")
    sentence = (
        f"distributed, ε = {private.epsilon:.1f}: {private.recovered} of {private.records} images were read from a sum"
    )
    control_sentence = (
        f"control, secure aggregation alone: {plain.recovered} of {plain.records} images were read from a sum"
    )
    return Findings([(private, sentence, private.recovered == 0), (plain, control_sentence, plain.recovered > 0)])


def run_membership(quick: bool) -> Findings:
    """As `run_noise`."""
    from sovfed.simulations.audit.membership import FALSE_ALARMS, LEARNT, audit_membership

    cases: list[Case] = []
    models = 32 if quick else 128
    for title, epsilon, claimed in (
        ("ε = 1", 1.0, 1.0), ("control, without privacy", None, None), ("control, ε = 40 sold as ε = 1", 40.0, 1.0),
    ):  # fmt: skip
        for result in audit_membership(epsilon, models=models, claimed=claimed):
            attacks = "; ".join(
                f"{name} AUC {attack.auc:.3f}, {100 * attack.share:.0f} ± {100 * attack.error:.0f} % found"
                for name, attack in (("LiRA", result.lira), ("threshold", result.threshold))
            )
            allowed = "" if claimed is None else f"; allowed {100 * result.bound:.0f} %"
            sentence = (
                f"{title}, {models} models, persons {result.persons}: {attacks} at {100 * FALSE_ALARMS:.0f} % false "
                f"alarms{allowed}"
            )
            if claimed is None:
                good = result.lira.auc > LEARNT
            elif claimed == epsilon:
                good = not result.contradicted
            else:  # the mislabelled are those who would show it
                good = result.contradicted or result.persons != "mislabelled"
            cases.append((result, sentence, good))
    return Findings(cases)


def run_isolation(quick: bool) -> Findings:
    """One case a running process, one a process that is sealed and attacks from inside, and a control that is open."""
    from sovfed.simulations.audit.isolation import audit_isolation

    cases: list[Case] = []
    escapes = 0
    for result in audit_isolation(institutions=1 if quick else 4):
        sentence = f"{result.process}: {len(result.escapes)} of {result.tried} looks and attempts got through"
        sentence += f" ({', '.join(result.escapes)})" if result.escapes else ""
        cases.append((result, sentence, bool(result.escapes) is result.control))
        escapes += 0 if result.control else len(result.escapes)
    return Findings(cases, {"escapes": float(escapes)})


def run_refusals(quick: bool) -> Findings:
    """One case a probe, and a control: a trainer that refuses what fails on the records, as this one once did."""
    from sovfed.simulations.audit.reading import audit_reading
    from sovfed.simulations.audit.refusals import Refusing, audit_refusals, probes

    all_probes = probes()
    cases: list[Case] = []
    for probe in all_probes:
        verdict = audit_refusals(probe)
        sentence = f"{verdict.probe}: {verdict.one} and {verdict.other}"
        cases.append((verdict, sentence, verdict.masked and not verdict.distinguishable))
    leaking = [verdict for verdict, _, _ in cases if verdict.distinguishable]
    plain = [probe for probe in all_probes if not probe.name.startswith("private")]
    controls = [audit_refusals(probe, Refusing) for probe in (plain[::2] if quick else plain)]
    caught = sum(control.distinguishable for control in controls)
    sentence = f"control, a trainer that refuses: {caught} of {len(controls)} probes tell the data sets apart"
    cases.append((Control(len(controls), caught), sentence, caught > len(controls) // 4))
    read = audit_reading()
    sentence = (
        f"limit, runs without privacy: {read.sums} proper sums read all {read.features} features of one held-out "
        f"patient, largest error {100 * read.error:.2g} % of the range; max_evaluations_per_run lets "
        f"{read.per_evaluations_of_a_run} be read in evaluations alone, training rounds the rest"
    )
    cases.append((read, sentence, read.error < 0.01))
    return Findings(
        cases,
        {
            "distinguishable": float(len(leaking)),
            "reached_the_records": float(sum(verdict.masked for verdict, _, _ in cases[: len(all_probes)])),
            "probes": float(len(all_probes)),
            "control_distinguishable": float(caught),
        },
    )


@dataclass(frozen=True)
class Control:
    """How many probes tell data sets apart at a trainer that is broken on purpose."""

    probes: int
    distinguishable: int


@dataclass(frozen=True)
class Reached:
    """The largest movement that an engine showed: what it could have seen."""

    engine: str
    clips: float


def run_sensitivity(quick: bool) -> Findings:
    """A case for each engine, kind of task and edge; the largest movement of all of them is the ratio."""
    from sovfed.simulations.audit.sensitivity import (
        ALLOWED,
        ENGINES,
        REACHED,
        REFUSED,
        audit_broken,
        audit_sensitivity,
        worst,
    )

    rows = audit_sensitivity(quick=quick)
    cases: list[Case] = []
    for row in rows:
        outcome = "refused" if row.refused else f"moved by at most {row.worst_over_clip:.6f} clips"
        sentence = f"{row.engine}, {row.kind}, {row.edge}: {row.pairs} pairs up to {row.persons} persons, {outcome}"
        as_declared = row.refused is (row.edge in REFUSED)
        cases.append((row, sentence, row.worst_over_clip <= ALLOWED and as_declared))
    for engine in ENGINES:  # of sums that are all zero, or refused, none would move too far
        reached = max((row.worst_over_clip for row in rows if row.engine == engine), default=0.0)
        sentence = f"{engine}: somebody moved the sum by {reached:.4f} clips, so that a movement would have been seen"
        cases.append((Reached(engine, reached), sentence, reached >= REACHED))
    for control in audit_broken():
        sentence = f"control, {control.edge}: moved by {control.worst_over_clip:.2f} clips, allowed {ALLOWED}"
        cases.append((control, sentence, control.worst_over_clip > ALLOWED))
    return Findings(cases, {"worst_over_clip": worst(rows)})


def run_differencing(quick: bool) -> Findings:
    """One case a way and number of colluding holders; controls without the rules, and with the policy "record"."""
    from sovfed.federation.secagg.terms import RECORD
    from sovfed.simulations.audit.differencing import audit_near, audit_releases, bearable, recorded

    sizes = [(10, c) for c in (0, 1)] if quick else [(n, c) for n in (7, 9, 10, 13) for c in bearable(n)]
    released = [audit for count, colluders in sizes for audit in audit_releases(count, colluders)]
    smaller = [(6, 0), (6, 1)] if quick else [(6, 0), (6, 1), (9, 2)]
    near = [audit for count, colluders in smaller for audit in audit_near(count, colluders)]
    cases: list[Case] = []
    for audit in released:
        sentence = (
            f"{audit.way}, {audit.institutions} institutions, {audit.colluders} collude: {audit.opened} sums opened, "
            f"at most {audit.sums_per_release} of one release, {audit.uncharged} releases uncharged"
        )
        tried = audit.opened > 0 or audit.way.startswith("attempt")  # of which no second sum may open at all
        cases.append((audit, sentence, tried and audit.sums_per_release <= 1 and audit.uncharged == 0))
    for audit in near:
        sentence = (
            f"{audit.way}, {audit.institutions} institutions, {audit.colluders} collude: {audit.near_answered} sums "
            "over almost the same institutions opened"
        )
        cases.append((audit, sentence, audit.near_answered == 0))
    for audit in audit_releases(10, 1, broken=True, mechanisms=["distributed"]):
        sentence = (
            f"control, {audit.way}, without the rules: {audit.sums_per_release} sums of one release, {audit.uncharged} "
            "uncharged"
        )
        exposed = audit.sums_per_release > 1 or audit.way.startswith("attempt")
        cases.append((audit, sentence, exposed and audit.uncharged > 0))
    for audit in audit_near(6, 0, differencing=RECORD):
        sentence = f"control, {audit.way}, under differencing: record: {audit.near_answered} sums opened"
        cases.append((audit, sentence, audit.near_answered > 0))
    named = Named(recorded(6))
    cases.append((named, f"control, record: {named.sums} sum named at the institution", named.sums == 1))
    return Findings(
        cases,
        {
            "sums_opened_per_release": max(audit.sums_per_release for audit in released),
            "uncharged_releases": sum(audit.uncharged for audit in released),
            "near_repeats_answered": sum(audit.near_answered for audit in near),
        },
    )


@dataclass(frozen=True)
class Named:
    """Sums that an institution named as ones that could be differenced with an earlier one."""

    sums: int


AUDITS = {
    "noise": run_noise,
    "canary": run_canary,
    "imprint": run_imprint,
    "membership": run_membership,
    "isolation": run_isolation,
    "refusals": run_refusals,
    "sensitivity": run_sensitivity,
    "differencing": run_differencing,
}


def publish(name: str, quick: bool, json_path: Path | None, console: Console) -> bool:
    """Run the audit `name`, print and write it; whether all is as it should be."""
    return show(name, AUDITS[name](quick), json_path, console)


def show(name: str, findings: Findings, json_path: Path | None, console: Console) -> bool:
    """Print and write `findings`; whether all is as it should be."""
    for _, sentence, fine in findings.cases:
        console.print(verdict(sentence, fine))
    return write(name, findings, json_path, console)


def verdict(sentence: str, fine: bool) -> str:
    """`sentence` behind a green or red mark."""
    return f"[green]✓[/] {sentence}" if fine else f"[red]✗[/] {sentence}"


def write(name: str, findings: Findings, json_path: Path | None, console: Console) -> bool:
    """Print the ratios and write all as JSON; whether all is as it should be."""
    for ratio, value in findings.ratios.items():
        console.print(f"{ratio} = {value:g}")
    if json_path is not None:
        write_atomic(json_path, json.dumps(document(name, findings), indent=2, default=float).encode())
    return all(fine for _, _, fine in findings.cases)


def document(name: str, findings: Findings) -> dict[str, Any]:
    """What `--json` writes."""
    rows = [
        {**dataclasses.asdict(result), "sentence": sentence, "as_it_should_be": fine}
        for result, sentence, fine in findings.cases
    ]
    return {"audit": name, "rows": rows, "ratios": findings.ratios}
