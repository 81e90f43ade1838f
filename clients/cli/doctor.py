"""`sovfed doctor`: is this machine ready, and are the records of an institution's home?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sovfed.federation.errors import SovfedError
from sovfed.federation.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sovfed.federation.host.doctor import Finding


@click.command()
@click.option("--home", type=click.Path(path_type=Path), help="Folder of an agency, institution or authority to check.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: [{name, state, found, fix}].")
@click.pass_context
def doctor(ctx: click.Context, home: Path | None, as_json: bool) -> None:
    """Check that this machine is ready, and say what to fix.

    Of an institution's home the records of every study are read too, a minute each at most: a finding names study,
    task, column and count, and never a value. Exits with 1 if a check fails; a warning is no failure. Nothing outside
    this machine is contacted, but for a data base that a study names.

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
    from sovfed.federation.host.doctor import Finding

    try:
        config, policy = load_config(home), load_policy(home)
        yield from (Finding("population", "warn", line) for line in population_findings(config, policy))
        yield from (Finding("privacy", "warn", line) for line in private_obstacles(config, policy))
        yield from records_findings(config, policy)
    except SovfedError as error:
        yield Finding("settings", "fail", str(error), "mend the file, or have `sovfed client init` write another home")
