"""`sovfed verify`: what holds of a release, and what is missing, by the authority's root alone; it as one file."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("bundle", type=FILE)
@click.option("--root", "root", type=FILE, required=True, help="The authority's root certificate, which you trust.")
@click.option("--signed-by-all", is_flag=True, help="Refuse what an institution that took part has not signed.")
@click.option("--cosigned-by", "least", type=click.IntRange(0), default=0, help="Refuse a log that fewer cosigned.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
def verify(bundle: Path, root: Path, signed_by_all: bool, least: int, as_json: bool) -> None:
    """Check every byte of BUNDLE, a release, a signed table or a receipt of `client purge`; no network, no other file.

    Exit code 3: it does not hold.

    \b
    Examples:
      sovfed verify heart-counts.table --root root.pem
      sovfed verify heart.release --root root.pem
      sovfed verify heart.release --root root.pem --signed-by-all --cosigned-by 3
    """
    from sovfed.federation.errors import EvidenceError
    from sovfed.federation.files import read_whole
    from sovfed.federation.identity import load_roots
    from sovfed.federation.orders.receipts import is_receipt, read_receipt
    from sovfed.federation.release.checking import LARGEST, check_release
    from sovfed.federation.release.sheet import check_sheet, is_sheet
    from sovfed.federation.text import visible

    data, roots = read_whole(bundle, LARGEST), load_roots(root)
    if is_receipt(data):
        receipt = read_receipt(data, roots)
        for line in [json.dumps(asdict(receipt), indent=2)] if as_json else map(visible, receipt.lines()):
            click.echo(line)
        return
    if is_sheet(data):
        sheet = check_sheet(data, roots)
        if signed_by_all or least:
            raise EvidenceError(f"{bundle}: a table is signed by the agency alone, and cosigned by nobody")
        if as_json:
            click.echo(json.dumps(sheet.predicate, indent=2))
            return
        for line in sheet.lines():
            click.echo(visible(line))
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
