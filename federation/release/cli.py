"""`sovfed verify`: what holds of a release, and what is missing, by the authority's root alone; it as one file."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cryptography.x509 import Certificate

    from sovfed.federation.release.checking import Verdict

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("bundle", type=FILE)
@click.option("--root", "root", type=FILE, required=True, help="The authority's root certificate, which you trust.")
@click.option("--signed-by-all", is_flag=True, help="Refuse what an institution that took part has not signed.")
@click.option("--cosigned-by", "least", type=click.IntRange(0), default=0, help="Refuse a log that fewer cosigned.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
def verify(bundle: Path, root: Path, signed_by_all: bool, least: int, as_json: bool) -> None:
    """Check every byte of BUNDLE: a release, a signed table, an institution's withdrawal or a receipt of a purge.

    No network, no other file.

    Exit code 3: it does not hold.

    \b
    Examples:
      sovfed verify heart-counts.table --root root.pem
      sovfed verify hospital-4.withdrawal --root root.pem
      sovfed verify heart.release --root root.pem
      sovfed verify heart.release --root root.pem --signed-by-all --cosigned-by 3
    """
    from sovfed.federation.errors import EvidenceError
    from sovfed.federation.files import read_whole
    from sovfed.federation.identity import load_roots
    from sovfed.federation.release.checking import LARGEST, check_release
    from sovfed.federation.text import visible

    data, roots = read_whole(bundle, LARGEST), load_roots(root)
    if (one := _of_one(data, roots)) is not None:
        if signed_by_all or least:
            raise EvidenceError(f"{bundle}: {one.what} is signed by one side alone, and cosigned by nobody")
        for line in [json.dumps(one.values, indent=2)] if as_json else map(visible, one.lines):
            click.echo(line)
        return
    verdict = check_release(data, roots)
    if signed_by_all and not verdict.signed_by_all:
        raise EvidenceError(f"{bundle}: not signed by all that took part: {verdict.missing[0]}")
    if len(verdict.log.whole) < least:
        who = ", ".join(verdict.log.whole) or "nobody"
        raise EvidenceError(f"{bundle}: the log with the release is cosigned by {who}, expected {least} institutions")
    if as_json:
        values = {
            "agency": verdict.agency, "institutions": verdict.institutions, "cosigned": verdict.log.cosigned,
            "holds": verdict.holds, "missing": verdict.missing, "statement": verdict.predicate,
        }  # fmt: skip
        click.echo(json.dumps(values, indent=2))
        return
    for line in verdict.holds:
        click.echo(f"✓ {line}")
    for line in verdict.missing:
        click.echo(f"– missing: {line}")
    for line in how_to_get(verdict, bundle):
        click.echo(line)


def how_to_get(verdict: Verdict, bundle: Path) -> Iterator[str]:
    """What to type, and where, for what is missing from `bundle` and can still be had; a line each."""
    from sovfed.federation.text import visible

    run = visible(shlex.quote(str(verdict.predicate["run"]["name"])))
    ways = {
        "signatures of": f"`sovfed client release sign {visible(shlex.quote(bundle.name))}` at each of them, one after "
        "the other on this file, which then comes back",
        "a summary of the training content": f"`sovfed client release declare {run}` at each institution, and at the "
        f"agency `sovfed release {run} --declaration FILE`, a new release, before it is signed",
        "audits of memorisation": f"`sovfed audit canary --run {run}` at the agency, with server.release_audits, "
        "then a new release",
    }
    for what, way in ways.items():
        if any(line.startswith(what) for line in verdict.missing):
            yield f"  {what.removesuffix(' of')}: {way}"


@dataclass(frozen=True)
class _OfOne:
    """What one side alone has signed, and what it says once that holds."""

    what: str
    values: Any
    lines: tuple[str, ...]


def _of_one(data: bytes, roots: Sequence[Certificate]) -> _OfOne | None:
    """A receipt, an institution's word or a table, checked; None where `data` is none. Raises EvidenceError."""
    from sovfed.federation.orders.answers import is_answer, read_answer
    from sovfed.federation.orders.receipts import is_receipt, read_receipt
    from sovfed.federation.orders.shown import word_lines
    from sovfed.federation.release.holding import holding
    from sovfed.federation.release.sheet import check_sheet, is_sheet

    if is_receipt(data):
        receipt = read_receipt(data, roots)
        return _OfOne("a receipt", asdict(receipt), tuple(receipt.lines()))
    if is_answer(data):
        with holding("the institution's word"):
            answer = read_answer(data, "the institution's word")
            answer.check_origin(roots)
            return _OfOne("an institution's word", asdict(answer), tuple(word_lines(answer)))
    if is_sheet(data):
        sheet = check_sheet(data, roots)
        return _OfOne("a table", sheet.predicate, tuple(sheet.lines()))
    return None


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def verifier(file: Path) -> None:
    """Write `sovfed verify` into the new FILE, for whoever has Python 3.11 and `cryptography` and nothing else.

    Equal versions write equal files: whoever is given one compares its SHA-256 with that of an own one.

    \b
    Examples:
      sovfed verifier verify.pyz
      python verify.pyz heart.release --root root.pem
    """
    from sovfed.federation.files import check_new
    from sovfed.federation.release.standalone import write_verifier

    check_new(file)
    click.echo(f"wrote {file}, SHA-256 {write_verifier(file)}")
