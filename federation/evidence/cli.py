"""`sovfed client log`, `sovfed server log`: what happened here, whether it was changed, what others have seen."""

from __future__ import annotations

import functools
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sovfed.federation.asking import confirmed
from sovfed.federation.help import Group
from sovfed.federation.text import day, visible

if TYPE_CHECKING:
    from collections.abc import Callable

    from sovfed.federation.evidence.retention import Terms

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def log_commands(home_option: Callable[[Any], Any], role: str, terms: Callable[[Path], Terms]) -> click.Group:
    """The group `log` for homes of `role`, which `home_option` names; `terms` says how long a home keeps its log."""

    @click.group(
        cls=Group,
        name="log",
        epilog=f"""\b
Examples:
  sovfed {role} log verify                 is it what was written? the first bad entry, if not
  sovfed {role} log verify --head FILE     does it go on from a head that somebody else kept?
  sovfed {role} log show --kind round      what happened
  sovfed {role} log heads                  what was seen of the logs of others, who cosigned this one
  sovfed {role} log export DIR             as files for any tool of transparency logs (C2SP tlog-tiles)
  sovfed {role} log prune --dry-run        what the rule of retention lets go, and what stays, and why
  sovfed {role} log mend                   set aside what cannot be entered, where a command names this one
""",
    )
    def log() -> None:
        """Show and check the log that nobody rewrites alone: orders, rounds, releases, refusals, admissions."""

    for command in (verify, show, head, heads, trust, export, mend):
        log.add_command(click.command(name=command.__name__, help=command.__doc__)(home_option(_own(command))))
    log.add_command(click.command(name="prune", help=_prune.__doc__)(home_option(_bound(terms))))
    return log


def _own(command: Callable[..., None]) -> Callable[..., None]:
    """`command` for one role alone: click takes a function's options away once it has made a command of it."""

    @functools.wraps(command)
    def own(**options: Any) -> None:
        command(**options)

    own.__dict__["__click_params__"] = [*getattr(command, "__click_params__", ())]
    return own


def _bound(terms: Callable[[Path], Terms]) -> Callable[..., None]:
    """`_prune` by these `terms`, with its options."""

    @click.option("--before", type=click.DateTime(["%Y-%m-%d"]), help="Only what is older (UTC); the rule holds.")
    @click.option("--dry-run", is_flag=True, help="Say what would go, and delete nothing.")
    @click.option("--yes", is_flag=True, help="Do not ask.")
    def prune(home: Path, before: datetime | None, dry_run: bool, yes: bool) -> None:
        _prune(terms(home), home, before, dry_run=dry_run, yes=yes)

    return prune


@click.option("--head", "shown", type=FILE, multiple=True, help="A head of this log that somebody else has kept.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
def verify(home: Path, shown: tuple[Path, ...], as_json: bool) -> None:
    """Check every entry of the log, and its heads (exit code 3: it was changed, and where).

    \b
    Examples:
      sovfed server log verify
      sovfed client log verify
    """
    from dataclasses import asdict

    from sovfed.federation.evidence.checking import check_log
    from sovfed.federation.evidence.shown import columns, hung

    checked = check_log(home, [path.read_bytes() for path in shown])
    if as_json:
        values = {
            "origin": checked.origin,
            "size": checked.size,
            "root": checked.root.hex(),
            "cosigned": checked.cosigned,
            "retired": [asdict(retired) for retired in checked.retired],
            "damage": checked.damage,
        }
        click.echo(json.dumps(values))
        return
    click.echo(f"{checked.origin}: {checked.size} entries, as they were written")
    for name, size in checked.cosigned.items():
        click.echo(f"  the first {size} cosigned by {visible(name)}")
    for retired in checked.retired:
        click.echo(hung(f"  {retired.told()}", columns()))
    for seq in checked.damage:
        click.echo(hung(f"  entry {seq} tells that what stood ahead of the log was not what was written", columns()))
    if not checked.cosigned:
        click.echo("  cosigned by nobody yet: whoever has this home's keys could write it anew")


@click.option("--kind", help="Entries of this kind alone.")
@click.option("--last", type=click.IntRange(1), default=50, show_default=True, help="The newest so many.")
@click.option("--json", "as_json", is_flag=True, help="Print the entries as they are kept, a line each.")
def show(home: Path, kind: str | None, last: int, as_json: bool) -> None:
    """Print the newest entries.

    \b
    Examples:
      sovfed server log show --kind round --last 20
      sovfed client log show --kind order
    """
    from collections import deque

    from sovfed.federation.evidence.shown import columns, entry_lines
    from sovfed.federation.evidence.store import LogReader

    newest: deque[tuple[int, dict[str, Any]]] = deque(maxlen=last)
    for seq, data in LogReader(home).entries():
        values = json.loads(data)
        if kind in (None, values["kind"]):
            newest.append((seq, values))
    for seq, values in newest:
        lines = [json.dumps({"seq": seq, **values})] if as_json else entry_lines(seq, values, columns())
        click.echo("\n".join(lines))


def head(home: Path) -> None:
    """Print the newest head of this log, for somebody else to keep.

    \b
    Examples:
      sovfed server log head
      sovfed client log head
    """
    from sovfed.federation.evidence.store import LogReader

    click.echo(LogReader(home).head().decode(), nl=False)


def heads(home: Path) -> None:
    """Print what was seen of the logs of others, who cosigned this one, and what does not agree (exit code 3).

    \b
    Examples:
      sovfed server log heads
      sovfed client log heads
    """
    from sovfed.federation.errors import EvidenceError
    from sovfed.federation.evidence.notes import read_checkpoint
    from sovfed.federation.evidence.shown import columns, hung
    from sovfed.federation.evidence.witness import all_seen, cosignatures, others, problems

    said = [
        f"seen: {visible(seen.head.origin)} with {seen.head.size} entries, {day(seen.at, '%F %T UTC')}"
        for seen in all_seen(home)
    ]
    for voucher, note in cosignatures(home):
        size = read_checkpoint(note).size
        said.append(f"cosigned by {visible(voucher.origin)}: the first {size} entries of this log")
    for voucher, note in others(home):
        cosigned = read_checkpoint(note)
        of = f"the first {cosigned.size} entries of {visible(cosigned.origin)}"
        said.append(f"{visible(voucher.origin)} cosigned {of}")
    for line in said:
        click.echo(hung(line, columns()))
    if problem := problems(home):
        raise EvidenceError("; ".join(problem.values()))


@click.argument("origin")
def trust(home: Path, origin: str) -> None:
    """Take the log ORIGIN as it is shown next: you know why it does not go on from what was seen.

    \b
    Examples:
      sovfed server log trust sovfed/institution/hospital-1
      sovfed client log trust sovfed/agency/fed.example.org
    """
    from sovfed.federation.errors import ConfigError
    from sovfed.federation.evidence.store import record
    from sovfed.federation.evidence.witness import forget

    if not forget(home, origin):
        raise ConfigError(f"nothing was seen of a log '{origin}'; `log heads` names those that were")
    record(home, "trust", log=origin)
    click.echo(f"{visible(origin)} will be taken as it is shown next")


@click.argument("folder", type=click.Path(path_type=Path))
def export(home: Path, folder: Path) -> None:
    """Write the log into the new FOLDER, as C2SP tlog-tiles.

    \b
    Examples:
      sovfed server log export evidence/
      sovfed client log export evidence/
    """
    from sovfed.federation.evidence.store import LogReader
    from sovfed.federation.evidence.tiles import export as write

    log = LogReader(home)
    size, gone = write(log, folder)
    click.echo(f"wrote {size} entries to {folder}; the key of its checkpoint is\n{log.voucher.log}")
    if gone:
        click.echo(f"{gone} of them are empty: what they said is no longer kept, and their hashes are in tile/0")


def mend(home: Path) -> None:
    """Set aside what stands ahead of the log and cannot be entered, with an entry that tells so.

    Entries that a message has left for may be in it: look at it, and compare with what the other side has logged.

    \b
    Examples:
      sovfed server log mend
      sovfed client log mend
    """
    from sovfed.federation.evidence.noting import Noting

    aside = Noting.mend(home)
    if aside is None:
        click.echo("nothing lies ahead of the log that is not in it")
    else:
        click.echo(f"what cannot be entered lies in {aside}; `log show --kind damage` tells of it")


def _prune(terms: Terms, home: Path, before: datetime | None, *, dry_run: bool, yes: bool) -> None:
    """Delete what entries say that are older than the policy keeps; hashes stay, and the log says what went.

    The rule is log_retention_days, of policy.yaml at an institution, server.json at the agency. What an order, permit,
    run or withdrawal still needs stays, and so does what nobody has cosigned.

    \b
    Examples:
      sovfed client log prune --dry-run
      sovfed server log prune --before 2027-01-01
    """
    import time

    from sovfed.federation.evidence.retention import plan, prune

    until = None if before is None else int(before.replace(tzinfo=UTC).timestamp())
    made = plan(home, terms, time.time(), until)
    for line in made.told():
        click.echo(visible(line))
    if dry_run or not made.ranges:
        return
    if not yes and not confirmed("Delete what they say? For good."):
        return
    made = plan(home, terms, time.time(), until)  # as it is now: an answer may have taken a day
    seq = prune(home, made)
    click.echo(f"what {made.count} entries said is deleted: entry {seq} tells so")
