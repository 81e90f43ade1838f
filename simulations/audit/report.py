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
        found = audit_noise(mechanism)
        sentence = (
            f"{mechanism}: variance {found.ratio:.3f} of the claimed, p = {found.p_value:.2g}; "
            f"{found.detectable:.2f} would be found with 99 %"
        )
        cases.append((found, sentence, not found.contradicted))
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
        found = audit_canaries(canaries, noise_multiplier)
        sentence = (
            f"noise multiplier {noise_multiplier:g}, {canaries} canaries: claimed ε = {found.claimed:.2f}, measured "
            f"ε ≥ {found.lower:.2f} (95 %); without noise it would be {found.ceiling:.2f}. {_guesses(found)}; "
            f"{found.detectable:.2f} of the noise would be found with 99 %"
        )
        cases.append((found, sentence, not found.contradicted))
    for what, control in (
        (f"one of {SHARES} shares of noise", audit_canaries(canaries, 2.0, shares_present=1)),
        ("a third less noise than claimed", audit_canaries(canaries, 2.0, actual=4 / 3)),
    ):
        sentence = (
            f"control, {what}: claimed {control.claimed:.2f}, measured ≥ {control.lower:.2f}. {_guesses(control)}"
        )
        cases.append((control, sentence, control.contradicted))
    return Findings(cases)


def _guesses(found: CanaryAudit) -> str:
    return f"{100 * found.right:.1f} % guessed right, allowed {100 * found.allowed:.1f} %, p = {found.p_value:.2g}"


def run_imprint(quick: bool) -> Findings:
    """As `run_noise`."""
    from sovfed.simulations.audit.imprint import audit_imprint

    private, plain = audit_imprint("distributed"), audit_imprint("none")
    one = (
        f"distributed, ε = {private.epsilon:.1f}: {private.recovered} of {private.records} images were read from a sum"
    )
    other = f"control, secure aggregation alone: {plain.recovered} of {plain.records} images were read from a sum"
    return Findings([(private, one, private.recovered == 0), (plain, other, plain.recovered > 0)])


def run_membership(quick: bool) -> Findings:
    """As `run_noise`."""
    from sovfed.simulations.audit.membership import FALSE_ALARMS, LEARNT, audit_membership

    cases: list[Case] = []
    models = 32 if quick else 128
    for title, epsilon, claimed in (
        ("ε = 1", 1.0, 1.0), ("control, without privacy", None, None), ("control, ε = 40 sold as ε = 1", 40.0, 1.0),
    ):  # fmt: skip
        for found in audit_membership(epsilon, models=models, claimed=claimed):
            attacks = "; ".join(
                f"{name} AUC {one.auc:.3f}, {100 * one.share:.0f} ± {100 * one.error:.0f} % found"
                for name, one in (("LiRA", found.lira), ("threshold", found.threshold))
            )
            allowed = "" if claimed is None else f"; allowed {100 * found.bound:.0f} %"
            sentence = (
                f"{title}, {models} models, persons {found.persons}: {attacks} at {100 * FALSE_ALARMS:.0f} % false "
                f"alarms{allowed}"
            )
            if claimed is None:
                good = found.lira.auc > LEARNT
            elif claimed == epsilon:
                good = not found.contradicted
            else:  # the mislabelled are those who would show it
                good = found.contradicted or found.persons != "mislabelled"
            cases.append((found, sentence, good))
    return Findings(cases)


def run_differencing(quick: bool) -> Findings:
    """One case a way and number of colluding holders; controls without the rules, and with the policy "record"."""
    from sovfed.federation.secagg.terms import RECORD
    from sovfed.simulations.audit.differencing import audit_near, audit_releases, bearable, recorded

    sizes = [(10, c) for c in (0, 1)] if quick else [(n, c) for n in (7, 9, 10, 13) for c in bearable(n)]
    released = [found for count, colluders in sizes for found in audit_releases(count, colluders)]
    smaller = [(6, 0), (6, 1)] if quick else [(6, 0), (6, 1), (9, 2)]
    near = [found for count, colluders in smaller for found in audit_near(count, colluders)]
    cases: list[Case] = []
    for found in released:
        sentence = (
            f"{found.way}, {found.institutions} institutions, {found.colluders} collude: {found.opened} sums opened, "
            f"at most {found.sums_per_release} of one release, {found.uncharged} releases uncharged"
        )
        cases.append((found, sentence, found.sums_per_release <= 1 and found.uncharged == 0))
    for found in near:
        sentence = (
            f"{found.way}, {found.institutions} institutions, {found.colluders} collude: {found.near_answered} sums "
            "over almost the same institutions opened"
        )
        cases.append((found, sentence, found.near_answered == 0))
    for found in audit_releases(10, 1, broken=True, mechanisms=["distributed"]):
        sentence = (
            f"control, {found.way}, without the rules: {found.sums_per_release} sums of one release, {found.uncharged} "
            "uncharged"
        )
        whole = found.sums_per_release > 1 or found.way.startswith("attempt")
        cases.append((found, sentence, whole and found.uncharged > 0))
    for found in audit_near(6, 0, differencing=RECORD):
        sentence = f"control, {found.way}, under differencing: record: {found.near_answered} sums opened"
        cases.append((found, sentence, found.near_answered > 0))
    named = Named(recorded(6))
    cases.append((named, f"control, record: {named.sums} sum named at the institution", named.sums == 1))
    return Findings(
        cases,
        {
            "sums_opened_per_release": max(found.sums_per_release for found in released),
            "uncharged_releases": sum(found.uncharged for found in released),
            "near_repeats_answered": sum(found.near_answered for found in near),
        },
    )


@dataclass(frozen=True)
class Named:
    """Sums that an institution named as ones that could be differenced with an earlier one."""

    sums: int


AUDITS = {
    "noise": run_noise, "canary": run_canary, "imprint": run_imprint, "membership": run_membership,
    "differencing": run_differencing,
}  # fmt: skip


def publish(name: str, quick: bool, json_path: Path | None, console: Console) -> bool:
    """Run the audit `name`, print and write it; whether all is as it should be."""
    good = True
    written = []
    findings = AUDITS[name](quick)
    for found, sentence, fine in findings.cases:
        console.print(f"[green]✓[/] {sentence}" if fine else f"[red]✗[/] {sentence}")
        written.append({**dataclasses.asdict(found), "sentence": sentence, "as_it_should_be": fine})
        good &= fine
    for ratio, value in findings.ratios.items():
        console.print(f"{ratio} = {value:g}")
    if json_path is not None:
        write_atomic(
            json_path,
            json.dumps({"audit": name, "rows": written, "ratios": findings.ratios}, indent=2, default=float).encode(),
        )
    return good
