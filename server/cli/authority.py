"""`sovfed authority`: the certificate authority that vouches for institutions and for the agency's server."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
from click.core import ParameterSource

from sovfed.federation.asking import confirmed
from sovfed.federation.errors import IdentityError
from sovfed.federation.help import Group
from sovfed.federation.host.service_options import options as service_options

ENVIRONMENT: Final = "SOVFED_AUTHORITY_PASSPHRASE"
CREDENTIAL: Final = "passphrase"
HOME: Final = click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
    default=Path("authority"),
    show_default=True,
    envvar="SOVFED_AUTHORITY_HOME",
    help="The authority's folder.",
)
PASSPHRASE: Final = click.option(
    "--passphrase", is_flag=True, help=f"Ask for the passphrase of the root key (or set {ENVIRONMENT})."
)
FILE: Final = click.Path(path_type=Path, dir_okay=False)


@click.group(cls=Group, name="authority")
def cli() -> None:
    """Sign, renew and revoke identities. Run it apart from the agency's server, best on a machine without a network.

    \b
    Examples:
      sovfed authority init --name "Ministry of Health" --passphrase
      sovfed authority sign hospital-1.csr --out hospital-1.pem
      sovfed authority sign server.csr --server --out server.pem
      sovfed authority sign ann.csr --signer --out ann.pem       who publishes or reviews tasks
      sovfed authority revoke hospital-1
      sovfed authority crl --days 30
      sovfed authority rotate                                    a new root, while the old one is still trusted
      sovfed authority tend AGENCY --every 60                    renewals and lists by themselves
    """


@cli.command()
@click.argument(
    "folder", metavar="[DIR]", required=False, type=click.Path(path_type=Path, file_okay=False, resolve_path=True)
)
@click.option("--name", required=True, help="Name of the authority, in its root certificate.")
@HOME
@PASSPHRASE
@click.pass_context
def init(context: click.Context, folder: Path | None, name: str, home: Path, passphrase: bool) -> None:
    """Make a new authority: root key (0600), root certificate and an empty revocation list. DIR is the same as --home.

    \b
    Examples:
      sovfed authority init --name "Health Authority"
      sovfed authority init --name "Health Authority" --home /srv/authority
    """
    from sovfed.federation.certificates import certificate_fingerprint
    from sovfed.server.registry import authority

    if folder is not None:
        if context.get_parameter_source("home") is ParameterSource.COMMANDLINE and folder != home:
            raise click.UsageError(f"two folders: {folder} and --home {home}")
        home = folder
    root = authority.init(home, name, passphrase=_passphrase(passphrase, confirm=True))
    click.echo(f"Authority '{name}' in {home}. Give {home / 'root.pem'} and {home / 'crl.pem'} to the agency.")
    click.echo(f"Root fingerprint, for institutions to compare: {certificate_fingerprint(root)}")


@cli.command()
@click.argument("csr", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--out", type=FILE, required=True, help="Where to write the certificate (PEM).")
@click.option("--server", is_flag=True, help="The request is the agency's server's, not an institution's.")
@click.option("--signer", is_flag=True, help="The request is that of a person who publishes or reviews tasks.")
@click.option("--days", type=click.IntRange(1, 3650), help="Validity; by default 30, a signer's 365.")
@click.option("--yes", is_flag=True, help="Do not ask: the fingerprint has been compared.")
@HOME
@PASSPHRASE
def sign(
    csr: Path, out: Path, server: bool, signer: bool, days: int | None, yes: bool, home: Path, passphrase: bool
) -> None:
    """Sign the request CSR, once its key fingerprint has been compared with its owner (not with who carried it).

    \b
    Examples:
      sovfed authority sign server.csr --server --out server.pem --home authority
      sovfed authority sign hospital-1.csr --out hospital-1.pem
    """
    from sovfed.federation.files import read_bounded, write_atomic
    from sovfed.server.registry import authority

    authority.read_register(home)  # before anybody is asked: there is an authority here
    pem = read_bounded(csr)
    kind, name, fingerprint = authority.describe(pem)
    click.echo(f"{kind.capitalize()}: {name}{authority.organisation_of(pem)}\nKey fingerprint: {fingerprint}")
    if not yes and not confirmed("Has this fingerprint been compared with the key's owner?"):
        raise IdentityError(f"{csr}: not signed, the fingerprint was not confirmed")
    secret = _passphrase(passphrase)
    write_atomic(out, authority.sign(home, pem, server=server, signer=signer, days=days, passphrase=secret))
    click.echo(f"Wrote {out}")


@cli.command()
@click.argument("target", metavar="NAME|SERIAL")
@click.option("--server", is_flag=True, help="NAME is a server's name.")
@click.option("--signer", is_flag=True, help="NAME is that of a person who publishes or reviews tasks.")
@HOME
@PASSPHRASE
def revoke(target: str, server: bool, signer: bool, home: Path, passphrase: bool) -> None:
    """Revoke all certificates of an institution, or the one with a SERIAL, and publish a new revocation list.

    \b
    Example:
      sovfed authority revoke hospital-1 --home authority
    """
    from sovfed.server.registry import authority

    named: authority.Kind = "server" if server else "signer" if signer else "institution"
    kind = None if named == "institution" and _is_serial(home, target) else named
    authority.revoke(home, target, kind, passphrase=_passphrase(passphrase))
    click.echo(
        f"Revoked {target}. Give {home / 'crl.pem'} to the agency now (`sovfed server crl`, or its server.crl_source); "
        "until then nothing has changed there."
    )


@cli.command()
@click.option("--days", type=click.IntRange(1, 365), default=30, show_default=True, help="How long the list is good.")
@click.option("--out", type=FILE, help="A copy for everybody to read, as for the agency's server.crl_source.")
@HOME
@PASSPHRASE
def crl(days: int, out: Path | None, home: Path, passphrase: bool) -> None:
    """Sign the revocation list again. Without a fresh list every process refuses every peer.

    \b
    Example:
      sovfed authority crl --home authority --out crl.pem
    """
    from sovfed.federation.files import write_atomic
    from sovfed.server.registry import authority

    authority.refresh_crl(home, days=days, passphrase=_passphrase(passphrase))
    if out is not None:
        write_atomic(out, (home / "crl.pem").read_bytes(), 0o644)
    click.echo(f"Wrote {out or home / 'crl.pem'}, good for {days} days. Give it to the agency.")


@cli.command("install-service")
@service_options
@click.option("--days", type=click.IntRange(2, 365), default=30, show_default=True, help="How long each list is good.")
@click.option("--out", type=FILE, help="Where a copy of each new list is written, for everybody to read.")
@click.option(
    "--agency", type=click.Path(path_type=Path, file_okay=False, exists=True, resolve_path=True),
    help="The agency's home, or a copy of its folder `registry`: renewals that wait there are signed too (`tend`).",
)  # fmt: skip
@click.option("--passphrase-file", type=FILE, help="File of root's with the root key's passphrase, if it has one.")
@HOME
def install_service(
    user: str,
    name: str,
    folder: Path,
    start: bool,
    show: bool,
    days: int,
    out: Path | None,
    agency: Path | None,
    passphrase_file: Path | None,
    home: Path,
) -> None:
    """Have systemd sign a fresh revocation list every day, without a network: for an authority that is not offline.

    With --agency it signs the renewals of certificates too, and must be able to write there.

    \b
    Examples:
      sudo sovfed authority install-service --home /srv/authority --user authority --out /srv/lists/crl.pem
      sudo sovfed authority install-service --home /srv/authority --agency /srv/sovfed --out /srv/lists/crl.pem
    """
    from sovfed.federation.host.quiet import python_command
    from sovfed.federation.host.service_options import carry_out
    from sovfed.federation.host.units import daily
    from sovfed.server.registry.tending import exchange_folder

    command = python_command("sovfed", "authority", "crl", "--days", str(days), "--home", str(home))
    more = f"LoadCredential={CREDENTIAL}:{passphrase_file.absolute()}\n" if passphrase_file else ""
    if out is not None:
        command += ["--out", str(out.absolute())]
        more += f"ReadWritePaths={out.absolute().parent}\n"
    first = []
    if agency is not None:
        first = python_command("sovfed", "authority", "tend", str(agency), "--home", str(home))
        more += f"ReadWritePaths={exchange_folder(agency)}\n"
    units = daily("authority", home, *filter(None, (first, command)), user=user, name=name, more=more)
    carry_out(units, folder, start=start, show=show)


@cli.command()
@click.option("--days", type=click.FloatRange(min=0, min_open=True), default=90, show_default=True, help="The overlap.")
@HOME
@PASSPHRASE
def rotate(days: float, home: Path, passphrase: bool) -> None:
    """Make a new root, which takes over from the present one in DAYS; both are trusted meanwhile.

    The old root signs the new one, so that agency and institutions take it up by themselves, as long as `tend` runs (or
    handover.json is put into the agency's registry/certificates). Certificates move over as they are renewed.

    \b
    Example:
      sovfed authority rotate --home authority
    """
    from datetime import timedelta

    from sovfed.federation.certificates import certificate_fingerprint
    from sovfed.server.registry import authority

    root = authority.rotate(home, overlap=timedelta(days=days), passphrase=_passphrase(passphrase))
    click.echo(f"New root, fingerprint: {certificate_fingerprint(root)}; the former one is trusted for {days:g} days.")


@cli.command()
@click.argument("agency", type=click.Path(path_type=Path, file_okay=False, exists=True, resolve_path=True))
@click.option("--every", "every_s", type=click.FloatRange(min=0.1), help="Go on looking, so many seconds apart.")
@click.option("--days", type=click.FloatRange(min=0, min_open=True), default=30, show_default=True, help="Validity.")
@HOME
@PASSPHRASE
def tend(agency: Path, every_s: float | None, days: float, home: Path, passphrase: bool) -> None:
    """Sign the renewals that wait in the home of AGENCY, and a new revocation list when half of its time is over.

    Only what the certified key itself has endorsed is signed: no new institution, no other name, no key older than a
    year. AGENCY may be a copy of its folder `registry`; `certificates` in it then travels back.

    \b
    Examples:
      sovfed authority tend ~/.sovfed/server --home authority          once, as from cron
      sovfed authority tend ~/.sovfed/server --home authority --every 60
    """
    import time

    from sovfed.federation.host.logs import log_to_stderr
    from sovfed.server.registry.tending import exchange_folder
    from sovfed.server.registry.tending import tend as tend_once

    secret, folder = _passphrase(passphrase), exchange_folder(agency)
    log_to_stderr()
    while True:
        for line in tend_once(home, folder, days=days, passphrase=secret):
            click.echo(line)
        if every_s is None:
            return
        time.sleep(every_s)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
@HOME
def show(as_json: bool, home: Path) -> None:
    """Show every certificate that the authority has issued, and until when the revocation list is good.

    \b
    Example:
      sovfed authority show --home authority
    """
    from dataclasses import asdict

    from sovfed.federation.certificates import certificate_fingerprint
    from sovfed.federation.identity import load_certificate
    from sovfed.federation.revocation import load_crl
    from sovfed.federation.tables import print_rows
    from sovfed.server.registry import authority

    register, now = authority.read_register(home), datetime.now(UTC)
    fingerprint = certificate_fingerprint(load_certificate(home / "root.pem"))
    expires = load_crl(home / "crl.pem").next_update_utc
    if as_json:
        extra = {"root_fingerprint": fingerprint, "crl_expires": expires.isoformat() if expires else None}
        click.echo(json.dumps({**asdict(register), **extra}, indent=2))
        return
    rows = []
    for issued in register.issued:
        state = "valid" if issued.valid(now) else "revoked" if issued.revoked else "expired"
        age = f"{authority.key_age(register, issued.key, now).days} days"
        rows.append((issued.name, issued.kind, state, issued.until[:10], issued.serial, issued.key[:16] + "…", age))
    title = f"{register.name} · root {fingerprint[:16]}… · revocation list good until {expires:%F}"
    print_rows(("name", "kind", "state", "until", "serial", "key", "key's age"), rows, title)


def _passphrase(ask: bool, *, confirm: bool = False) -> bytes | None:
    """The passphrase from the environment or, if asked for, from the terminal."""
    text = os.environ.get(ENVIRONMENT, "") or _credential()
    if not text and ask:
        text = click.prompt("Passphrase of the root key", hide_input=True, confirmation_prompt=confirm)
    return text.encode() or None


def passphrase_for(home: Path) -> bytes | None:
    """The passphrase of the root key in `home`, asked for if that needs one."""
    return _passphrase(b"ENCRYPTED" in (home / "root.key").read_bytes())


def _credential() -> str:
    """The passphrase that systemd hands to the service of `install-service`; "" without one."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY", "")
    path = Path(folder) / CREDENTIAL
    return path.read_text(encoding="utf-8").rstrip("\n") if folder and path.exists() else ""


def _is_serial(home: Path, target: str) -> bool:
    from sovfed.server.registry import authority

    return any(issued.serial == target for issued in authority.read_register(home).issued)
