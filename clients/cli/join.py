"""`sovfed client join`: from an invitation to a node that has proven its way to the agency, in one command."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sovfed.clients.cli.home import HOME
from sovfed.clients.cli.policy_options import policy_options
from sovfed.clients.cli.way_options import Way, way_options
from sovfed.federation.errors import ConfigError, DataError, IdentityError
from sovfed.federation.text import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sovfed.clients.home.begin import Chosen
    from sovfed.clients.node.enrol import Fingerprints
    from sovfed.federation.config import ClientConfig
    from sovfed.federation.host.units import Unit
    from sovfed.federation.wire.enrolment import Invitation

WEEK_S: Final = 7 * 86_400.0
PROOF_S: Final = 180.0
TOLD_EVERY_S: Final = 60.0  # where no terminal shows a line that changes


@click.command()
@click.argument("invitation", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("overrides", nargs=-1)
@click.option("--data", help="The records: a file or folder (with --task), a source by name, or else data.… settings.")
@policy_options
@click.option("--authority", help="The root's fingerprint as the authority itself gave it; another root is refused.")
@click.option("--yes", is_flag=True, help="Do not ask: the root's fingerprint was compared with the authority.")
@way_options
@click.option("--detach/--foreground", default=True, help="Return once joined, or stay until Ctrl-C.")
@click.option("--service", is_flag=True, help="Have systemd keep it up, also after a reboot.")
@click.option(
    "--service-folder",
    type=click.Path(path_type=Path, file_okay=False),
    default="/etc/systemd/system",
    show_default=True,
    help="Where the service's unit is written.",
)
@click.option("--timeout", "timeout_s", default=WEEK_S, help="Seconds to wait for admission.  [default: a week]")
@HOME
def join(
    invitation: Path | None, overrides: tuple[str, ...], data: str | None, chosen: Chosen, authority: str | None,
    yes: bool, way: Way, detach: bool, service: bool, service_folder: Path, timeout_s: float, home: Path,
) -> None:  # fmt: skip
    """Join a federation with the agency's INVITATION: settings, keys, admission, start, and proof that all of it works.

    Nothing is asked for but a look at the authority's fingerprint. Interrupted by Ctrl-C, a reboot or a refusal that
    was mended, the same command goes on where it was; a home that is there already is kept as it is, and where its
    policy.yaml says otherwise than the options here, nothing is done.

    \b
    Examples:
      sovfed client join hospital-1.invitation --task birth.yaml --data /srv/birth.csv
      sovfed client join hospital-1.invitation --data breast_cancer --authority "5f2c 88…"
      sovfed client join hospital-1.invitation --task birth.yaml --data birth.csv --min-cohort 4 --officers
      sovfed client join hospital-1.invitation data=sql data.url_file=/srv/url --task birth.yaml
      sovfed client join hospital-1.invitation --task birth.yaml --data birth.csv --service
      sovfed client join                       go on
    """
    if service and not detach:
        raise click.UsageError("--service and --foreground: one of the two starts it")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what it says of a failed connection, we say in words
    from sovfed.clients.cli.data import tell_beside
    from sovfed.clients.home.folder import SETTINGS, load_config
    from sovfed.clients.node.join import kept_invitation
    from sovfed.federation.wire.enrolment import Invitation

    home = home.absolute()
    given = Invitation.from_json(invitation.read_text(encoding="utf-8")) if invitation else kept_invitation(home)
    if given is not None and not (home / SETTINGS).exists():
        way = way.else_of_environment(home, given.address)
    words = [*data_overrides(data), *overrides]
    tell_beside(words)
    made = _settle(home, words, chosen, way.proxy)
    way.keep(home)
    _tell_of_cohort(home, given)
    unit = _unit(home, service_folder, given) if service else None
    try:
        _look_at_records(home)
    except DataError:
        for path in made:  # so that the command can be given again with other records
            path.unlink()
        raise
    _enrol(home, given, authority, yes, timeout_s)
    if unit is not None:
        from sovfed.clients.cli.join_service import keep_up

        keep_up(home, unit, service_folder, timeout_s)
    _start(home, detach, lambda: _prove(home, load_config(home)))


def _unit(home: Path, folder: Path, invitation: Invitation | None) -> Unit:
    from sovfed.clients.cli.join_service import unit_for
    from sovfed.clients.node.enrol import load_institution

    return unit_for(home, folder, invitation.institution if invitation is not None else load_institution(home).name)


def announce(prints: Fingerprints) -> None:
    """Show both fingerprints, for the telephone."""
    click.echo(f"authority's root  SHA-256 {prints.root}\nour key           SHA-256 {prints.key}", err=True)
    click.echo("compare both with the authority by telephone; waiting for its signature", err=True)


def data_overrides(data: str | None) -> list[str]:
    """What `--data` chooses, as `init` takes it. Raises UsageError if it is neither a path nor a source."""
    from sovfed.clients.data import sources
    from sovfed.federation.compose import PACKAGED, groups

    if data is None:
        return []
    if "=" in data and not Path(data).exists():
        return [data if data.startswith("data") else f"data.{data}"]
    if Path(data).exists():
        return ["data=own", f"data.path={data}"]
    if data in groups([PACKAGED])["data"]:
        return [f"data={data}"]
    if data in sources():
        return [f"data.source={data}"]
    raise click.UsageError(f"--data {data}: no such file or folder, and no source (`sovfed data` lists them)")


def _settle(home: Path, words: list[str], chosen: Chosen, proxy: str | None) -> list[Path]:
    """Write client.yaml and policy.yaml, or see that those that are there say the same of the records; what is new."""
    from sovfed.clients.cli.data import schema_of
    from sovfed.clients.home.begin import begin
    from sovfed.clients.home.folder import SETTINGS, load_config, whole
    from sovfed.clients.home.overrides import client_config
    from sovfed.clients.home.policy import POLICY, load_policy

    if not (home / SETTINGS).exists():
        if not words:
            raise ConfigError("which records? --data FILE --task TASK, or --data SOURCE (`sovfed data` lists them)")
        config = client_config(words, schema=schema_of(chosen.tasks))
        config = dataclasses.replace(config, proxy=proxy or config.proxy)
        for line in begin(home, config, chosen):
            click.echo(line, err=True)
        click.echo(f"settings: {home / SETTINGS}, and policy.yaml: what runs may ask of you")
        return [home / SETTINGS, home / POLICY]
    kept = load_config(home)
    if words and whole(client_config(words, schema=schema_of(chosen.tasks)).data, Path.cwd()) != kept.data:
        raise ConfigError(f"{home / SETTINGS} names other records than this command; edit it, or leave them out here")
    if proxy is not None and proxy != kept.proxy:
        raise ConfigError(f"{home / SETTINGS} has proxy: {kept.proxy}, the command {proxy}; edit the file")
    if unlike := list(chosen.unlike(load_policy(home))):
        raise ConfigError(f"{home / POLICY}: {'; '.join(unlike)}; edit the file, or leave the option out")
    click.echo(f"settings: {home / SETTINGS} and {POLICY} are kept as they are")
    return []


def _tell_of_cohort(home: Path, invitation: Invitation | None) -> None:
    """Warn of runs that the policy will not answer, before the first one waits for this institution."""
    from sovfed.clients.home.begin import unanswered
    from sovfed.clients.home.policy import load_policy

    if invitation is not None and (line := unanswered(load_policy(home), invitation.min_cohort)):
        click.echo(f"warning: {line}", err=True)


def _look_at_records(home: Path) -> None:
    """Say what is wrong with the records before anything is asked of others. Raises DataError if they are of no use."""
    from sovfed.clients.home.folder import load_config, private_obstacles
    from sovfed.clients.home.looked import population_findings, records_findings
    from sovfed.clients.home.policy import load_policy

    config, policy = load_config(home), load_policy(home)
    for line in (*private_obstacles(config, policy), *population_findings(config, policy)):
        click.echo(f"warning: {visible(line)}", err=True)
    findings = list(records_findings(config, policy))
    for finding in findings:
        click.echo(f"records: {visible(finding.found)}", err=finding.state != "ok")
    if any(finding.state == "fail" for finding in findings):
        raise DataError(
            "the records cannot be used as they are; mend them, or choose others, and run the command again"
        )


def _enrol(home: Path, invitation: Invitation | None, authority: str | None, yes: bool, timeout_s: float) -> None:
    from sovfed.clients.home.folder import proxy_setting
    from sovfed.clients.node.enrol import INSTITUTION_FILE, enrol, has_ended, load_institution
    from sovfed.clients.node.join import check_invitation, forget_invitation, keep_invitation, kept_invitation

    if (home / "identity" / INSTITUTION_FILE).exists():
        name = load_institution(home).name
        if invitation is not None and invitation.institution != name:
            raise IdentityError(f"{home} is {name!r}, the invitation is for {invitation.institution!r}; another --home")
        if not has_ended(home / "identity"):
            click.echo(f"identity: enrolled as {name}")
            forget_invitation(home)
            return
        click.echo(f"identity: the certificate of {name} has ended; it is enrolled anew, its ledger and journal stay")
    if invitation is None:
        raise ConfigError(
            "no invitation: ask the agency for one (`sovfed server admit NAME`; of whom it knows already, "
            "`sovfed server remove NAME` first) and name its file"
        )
    check_invitation(home, invitation, time.time())
    before = kept_invitation(home)
    if before is None or before.root != invitation.root or authority is not None:
        _compare(invitation, authority, yes)
    keep_invitation(home, invitation)
    with _progress(f"{invitation.institution} waits for {invitation.address}") as told:
        identity = enrol(
            home, invitation, timeout_s, authority=authority, announce=announce, told=told, proxy=proxy_setting(home)
        )
    forget_invitation(home)
    click.echo(f"identity: enrolled as {identity.name}, key made here")


def _compare(invitation: Invitation, authority: str | None, yes: bool) -> None:
    """Raises IdentityError unless the authority's root is the one that the operator was told of."""
    from sovfed.clients.node.enrol import plain_fingerprint
    from sovfed.federation.certificates import certificate_fingerprint
    from sovfed.federation.identity import parse_certificate

    root = certificate_fingerprint(parse_certificate(invitation.root.encode(), "invitation's root"))
    if authority is not None:
        if plain_fingerprint(authority) != root:
            raise IdentityError(f"the invitation's root has fingerprint {root}, the authority gave {authority}")
        return
    click.echo(f"the invitation names an authority whose root has the fingerprint\n  {root}")
    if yes:
        return
    if not sys.stdin.isatty():
        raise IdentityError(
            "nobody is here to compare that with what the authority says: --authority FINGERPRINT, or --yes"
        )
    if not click.confirm("Does the authority itself (by telephone, not the agency's mail) say the same?"):
        raise IdentityError("not joined: the root's fingerprint was not confirmed")


def _start(home: Path, detach: bool, prove: Callable[[], None]) -> None:
    from sovfed.clients.node.up import make_supervisor, supervise_detached
    from sovfed.federation.host.status import read_status

    if read_status(home) is not None:
        click.echo("processes: running already")
        prove()
    elif detach:
        click.echo("processes: starting trainer, supernode and gateway; on a busy machine that takes a minute")
        supervise_detached(home)
        click.echo("processes: trainer, supernode and gateway are up")
        prove()
        click.echo(f"they go on in the background; after a reboot `sovfed client up --home {home}`, or a service of it")
    else:
        make_supervisor(home).run(on_ready=prove)


def _prove(home: Path, config: ClientConfig) -> None:
    from sovfed.clients.home.policy import load_policy
    from sovfed.clients.node.enrol import load_institution
    from sovfed.clients.node.join import prove
    from sovfed.clients.orders.naming import nobody

    with _progress("waiting") as told:
        for line in prove(home, config, PROOF_S, told):
            click.echo(visible(line))
    click.echo(f"joined: {load_institution(home).name}; `sovfed client status --home {home}`")
    if line := nobody(home, load_policy(home).orders):
        click.echo(visible(line))


@contextmanager
def _progress(what: str) -> Iterator[Callable[[str], None]]:
    """Shows `what` is waited for, since when and why: a line that changes on a terminal, else one a minute."""
    import threading

    began, reason, ended = time.monotonic(), [""], threading.Event()
    terminal = sys.stderr.isatty()

    def show() -> None:
        pause_s = 1.0 if terminal else TOLD_EVERY_S
        while not ended.wait(pause_s):
            minutes, seconds = divmod(int(time.monotonic() - began), 60)
            line = visible(f"{what}, {minutes}:{seconds:02}  {reason[0]}")
            click.echo(f"\r\x1b[K{line[:78]}" if terminal else line, err=True, nl=not terminal)

    def told(text: str) -> None:
        if reason[0] != text and not terminal:
            click.echo(f"{what}: {visible(text)}", err=True)
        reason[0] = text

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield told
    finally:
        ended.set()
        thread.join()
        if terminal:
            click.echo("\r\x1b[K", err=True, nl=False)
