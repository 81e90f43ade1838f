"""`sovfed doctor`: is this machine ready, and are the records of an institution's home?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sovfed.federation.errors import SovfedError
from sovfed.federation.text import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sovfed.clients.orders.rules import OrderRules
    from sovfed.federation.config import ClientConfig
    from sovfed.federation.host.doctor import Finding


@click.command()
@click.option("--home", type=click.Path(path_type=Path), help="Folder of an agency, institution or authority to check.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: [{name, state, found, fix}].")
@click.pass_context
def doctor(ctx: click.Context, home: Path | None, as_json: bool) -> None:
    """Check that this machine is ready, and say what to fix.

    Of an institution's home the records of every study are read too, a minute each at most: a finding names study,
    task, column and count, and never a value. Exits with 1 if a check fails; a warning is no failure. Nothing outside
    this machine is contacted, but for the agency that an institution's home belongs to, and a data base of a study.

    \b
    Examples:
      sovfed doctor
      sovfed doctor --home institution
      sovfed doctor --json
    """
    from dataclasses import asdict

    from sovfed.clients.home.folder import SETTINGS
    from sovfed.federation.host.doctor import examine

    findings = list(examine(home))
    if home is not None and (home / SETTINGS).is_file():
        findings += home_findings(home)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        colours = {"ok": "green", "warn": "yellow", "fail": "red"}
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            state = click.style(finding.state.ljust(4), fg=colours[finding.state])
            click.echo(f"{state}  {finding.name.ljust(width)}  {visible(finding.found)}")
            if finding.fix:
                click.echo(f"{' ' * (width + 8)}→ {finding.fix}")
    ctx.exit(1 if any(finding.state == "fail" for finding in findings) else 0)


def home_findings(home: Path) -> Iterator[Finding]:
    """What `sovfed doctor` says of an institution's home: its studies, their populations, and their records."""
    from sovfed.clients.home.folder import load_config, private_obstacles
    from sovfed.clients.home.looked import population_findings, records_findings
    from sovfed.clients.home.policy import load_policy
    from sovfed.clients.ledger.file import rolled_back
    from sovfed.federation.host.doctor import Finding

    yield from (Finding("ledger", "fail", line) for line in rolled_back(home))
    try:
        config, policy = load_config(home), load_policy(home)
        yield from (Finding("population", "warn", line) for line in population_findings(config, policy))
        yield from (Finding("privacy", "warn", line) for line in private_obstacles(config, policy))
        yield from officer_findings(home, policy.orders)
        yield from way_findings(home, config)
        yield from records_findings(config, policy)
    except SovfedError as error:
        yield Finding("settings", "fail", str(error), "mend the file, or have `sovfed client init` write another home")


def officer_findings(home: Path, rules: OrderRules) -> Iterator[Finding]:
    """Who signs orders here; and what keeps an officer's word from being given, or from holding."""
    from sovfed.clients.orders.book import OrderBook
    from sovfed.clients.orders.naming import officer_lines
    from sovfed.clients.orders.rules import STANDING
    from sovfed.federation.host.doctor import Finding

    lines = officer_lines(OrderBook(home), rules)
    yield from (Finding("officers", "warn", line) for line in lines)
    if not lines:
        by_node = "orders within the standing consent are signed by the node, others by " * (rules.mode == STANDING)
        yield Finding("officers", "ok", f"{by_node}{', '.join(rules.keys) or 'nobody'}")


def way_findings(home: Path, config: ClientConfig) -> Iterator[Finding]:
    """Whether the agency's ports can be reached from here, each step of the way looked at, and what the gateway saw."""
    from sovfed.clients.node.renewal import last_contact
    from sovfed.federation.host.doctor import Finding
    from sovfed.federation.host.status import read_status
    from sovfed.federation.wire.reach import UnreachableError

    for name, look in _looks(home, config).items():
        try:
            yield Finding(name, "ok", look())
        except UnreachableError as error:
            yield Finding(name, "warn" if error.passing else "fail", str(error), error.fix)
        except SovfedError as error:
            yield Finding(name, "fail", str(error), "mend the setting")
    contact = last_contact(home)
    if contact is not None and contact.problem and read_status(home) is not None:
        yield Finding("gateway", "warn", f"its last look failed: {contact.problem}", "`sovfed client logs gateway`")


def _looks(home: Path, config: ClientConfig) -> dict[str, Callable[[], str]]:
    """By name, what to look at: fleet and lane of an enrolled home, else the enrolment port of its invitation."""
    from sovfed.clients.node.enrol import INSTITUTION_FILE, load_institution
    from sovfed.clients.node.join import kept_invitation
    from sovfed.federation.wire.proxy import proxy_for
    from sovfed.federation.wire.reach import Pinned, look, look_at_clock

    def plain(address: str, pinned: Pinned) -> str:
        proxy = proxy_for(address, config.proxy, home)
        look(address, pinned, proxy)
        return f"{address} answers{f', through the proxy {proxy.address}' if proxy else ''}"

    identity = home / "identity"
    if (identity / INSTITUTION_FILE).exists():
        pinned = Pinned((identity / "root.pem").read_text(), (identity / "cert.pem", identity / "key.pem"))
        institution = load_institution(home)
        fleet, lane = config.fleet_address or institution.fleet_address, config.lane_address or institution.lane_address
        return {
            "fleet": lambda: look_at_clock(fleet, pinned, proxy_for(fleet, config.proxy, home)),
            "lane": lambda: plain(lane, pinned),
        }
    invitation = kept_invitation(home)
    return {} if invitation is None else {"enrolment": lambda: plain(invitation.address, Pinned(invitation.root))}
