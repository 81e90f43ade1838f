"""`sovfed audit`: attacks on our own privacy claims."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from sovfed.federation.help import Group
from sovfed.server.cli.home import HOME

QUICK: Final = click.option("--quick", is_flag=True, help="Fewer cases or canaries: some seconds.")
JSON: Final = click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the results as JSON."
)
FOLDER: Final = click.Path(exists=True, file_okay=False, path_type=Path)
RUN: Final = click.option("--run", default="", help="At this finished run's parameters, for its release (agency).")
MINUTES: Final = click.option("--minutes", type=click.FloatRange(min=0), help="Begin nothing after so many minutes.")


@click.group(cls=Group)
def audit() -> None:
    """Attack the privacy claims of this installation, on this machine. Exits with 1 if a claim is contradicted.

    Each audit also attacks something that is broken on purpose, and fails if it does not find that. What an audit does
    not find may be there still: its power is printed beside the result. How they work: docs/privacy.md.

    \b
    Examples:
      sovfed audit noise --quick        is there as much noise in an opened sum as was claimed?
      sovfed audit canary               a lower bound on ε from one step
      sovfed audit canary --text        does a language model give away lines of its training text?
      sovfed audit imprint              can a malicious agency read records out of a secure sum?
      sovfed audit refusals             does a refusal, a size or a code tell of an institution's records?
      sovfed audit differencing         can it subtract two opened sums, or have one release in two?
      sovfed audit membership           does the released model tell who was trained on?
      sovfed audit isolation            can anything in a trainer reach out, or a gateway the records?
      sovfed audit sensitivity --quick  can one person move a sum by more than the clip that is paid for?
      sovfed audit faults               and when disks, clocks, certificates, networks or MLflow fail?
      sovfed audit chaos --quick        does a run need anybody when processes are killed, or lose anything?
    """


@audit.command()
@QUICK
@JSON
@click.pass_context
def noise(ctx: click.Context, quick: bool, json_path: Path | None) -> None:
    """χ² test of the noise in sums that the shipped secure aggregation opened.

    \b
    Example:
      sovfed audit noise --quick
    """
    _run(ctx, "noise", quick, json_path)


@audit.command()
@QUICK
@JSON
@RUN
@HOME
@click.option("--text", is_flag=True, help="Random lines in the training texts of a language model instead.")
@click.option("--data", type=FOLDER, help="With --text: a folder of law, SITE.jsonl.xz; default: made-up texts.")
@click.option("--person", is_flag=True, help="With --text: all copies of a line are one person's.")
@click.option("--goldfish", type=click.IntRange(2, 128), help="With --text: also train without one token in K.")
@click.pass_context
def canary(
    ctx: click.Context, quick: bool, json_path: Path | None, run: str, home: Path, text: bool, data: Path | None,
    person: bool, goldfish: int | None,
) -> None:  # fmt: skip
    """One-run audit of ε (Steinke, Nasr, Jagielski 2023) with persons whose gradient lies in one coordinate.

    --text: how well a language model knows lines that one institution holds 1, 4 and 16 times (exposure, Carlini et
    al. 2019), and how many it completes from their first half; with ε = 8 and without. Each copy is a document, so a
    person, by itself, and privacy is promised to one of them; --person makes them one person's.

    \b
    Examples:
      sovfed audit canary --quick
      sovfed audit canary --text --quick --goldfish 4
      sovfed audit canary --text --quick --person --data /data/ja_law
    """
    if not text and (data or person or goldfish):
        raise click.UsageError("--data, --person and --goldfish belong to --text")
    if not text:
        _run(ctx, "canary", quick, json_path, run, home)
        return
    if run:
        raise click.UsageError("--text trains models of its own: leave --run out")
    from rich.console import Console

    from sovfed.federation.files import check_writable
    from sovfed.simulations.audit.report import show
    from sovfed.simulations.audit.text_canary import run_text

    check_writable(json_path)
    findings = run_text(data, quick=quick, alone=person, goldfish=goldfish or 0)
    ctx.exit(0 if show("canary-text", findings, json_path, Console(soft_wrap=True)) else 1)


@audit.command()
@QUICK
@JSON
@RUN
@HOME
@click.pass_context
def imprint(ctx: click.Context, quick: bool, json_path: Path | None, run: str, home: Path) -> None:
    """A malicious model that reads images out of a secure sum: some without privacy, none with.

    \b
    Example:
      sovfed audit imprint --quick
    """
    _run(ctx, "imprint", quick, json_path, run, home)


@audit.command()
@QUICK
@JSON
@RUN
@HOME
@click.pass_context
def membership(ctx: click.Context, quick: bool, json_path: Path | None, run: str, home: Path) -> None:
    """Likelihood-ratio attack with shadow models (LiRA) on trained models, with and without privacy.

    \b
    Example:
      sovfed audit membership --quick
    """
    _run(ctx, "membership", quick, json_path, run, home)


@audit.command()
@QUICK
@JSON
@click.pass_context
def isolation(ctx: click.Context, quick: bool, json_path: Path | None) -> None:
    """Looks at a running institution's processes from outside, and tries to break out of each from inside.

    \b
    Example:
      sovfed audit isolation --quick
    """
    _run(ctx, "isolation", quick, json_path)


@audit.command()
@QUICK
@JSON
@click.pass_context
def refusals(ctx: click.Context, quick: bool, json_path: Path | None) -> None:
    """Neighbouring data sets and crafted requests: all that leaves one institution in the clear must be the same.

    \b
    Example:
      sovfed audit refusals --quick
    """
    _run(ctx, "refusals", quick, json_path)


@audit.command()
@QUICK
@JSON
@click.pass_context
def sensitivity(ctx: click.Context, quick: bool, json_path: Path | None) -> None:
    """How far one person moves the sum that noise is added to, at every engine's edges: at most one clip.

    \b
    Example:
      sovfed audit sensitivity --quick
    """
    _run(ctx, "sensitivity", quick, json_path)


@audit.command()
@QUICK
@JSON
@click.pass_context
def differencing(ctx: click.Context, quick: bool, json_path: Path | None) -> None:
    """A malicious agency, with colluding holders, that looks for two sums to subtract from each other.

    \b
    Example:
      sovfed audit differencing --quick
    """
    _run(ctx, "differencing", quick, json_path)


@audit.command()
@click.option("--quick", is_flag=True, help="A dozen points, in some minutes.")
@JSON
@click.option("--only", "--points", "only", multiple=True, metavar="NAME", help="This point, or all that begin so.")
@MINUTES
@click.option("--list", "listed", is_flag=True, help="Print the points' names and run nothing.")
@click.pass_context
def chaos(
    ctx: click.Context, quick: bool, json_path: Path | None, only: tuple[str, ...], minutes: float | None, listed: bool
) -> None:
    """Kills and stops every process of a real federation at every moment of a run: it must finish by itself.

    Results are in the file of --json as soon as they are known; the same command goes on where it stopped.

    \b
    Examples:
      sovfed audit chaos --quick --json chaos.json
      sovfed audit chaos --only trainer --only coordinator:last:kill
      sovfed audit chaos --minutes 50 --json all.json      all 341 points, some hours: again and again
      sovfed audit chaos --list
    """
    from rich.console import Console

    from sovfed.federation.files import check_writable
    from sovfed.simulations.audit.chaos.points import chosen
    from sovfed.simulations.audit.chaos.report import show_chaos

    if listed:
        click.echo("\n".join(point.name for points in chosen(only, quick=quick) for point in points))
        return
    check_writable(json_path)
    console = Console(soft_wrap=True, highlight=False)
    ctx.exit(0 if show_chaos(only, json_path, console, quick=quick, minutes=minutes) else 1)


@audit.command()
@JSON
@click.option("--only", multiple=True, metavar="NAME", help="Faults that begin so.")
@MINUTES
@click.option("--list", "listed", is_flag=True, help="Print the faults' names and run nothing.")
@click.pass_context
def faults(
    ctx: click.Context, json_path: Path | None, only: tuple[str, ...], minutes: float | None, listed: bool
) -> None:
    """Disks, clocks, certificates, networks, MLflow and institutions that fail while a real federation trains.

    Results are in the file of --json as soon as they are known; the same command goes on where it stopped.

    \b
    Examples:
      sovfed audit faults --json faults.json
      sovfed audit faults --only disk --only "clock, agency"
      sovfed audit faults --list
    """
    from rich.console import Console

    from sovfed.federation.files import check_writable
    from sovfed.simulations.audit.chaos.disks import have_own_mounts, with_own_mounts
    from sovfed.simulations.audit.chaos.faults import chosen_faults
    from sovfed.simulations.audit.chaos.report import show_faults

    if listed:
        click.echo("\n".join(chosen_faults(only)))
        return
    check_writable(json_path)
    chosen_faults(only)
    console = Console(soft_wrap=True, highlight=False)
    if not have_own_mounts():
        with_own_mounts()
    ctx.exit(0 if show_faults(only, json_path, console, minutes=minutes) else 1)


def _run(
    ctx: click.Context, name: str, quick: bool, json_path: Path | None, run: str = "", home: Path | None = None
) -> None:
    from rich.console import Console

    from sovfed.federation.files import check_writable
    from sovfed.simulations.audit.report import publish

    check_writable(json_path)
    if run and home is not None:
        from sovfed.simulations.audit.of_run import audit_run

        result = audit_run(home, run, name, quick=quick)
        click.echo(f"{'passed' if result.passed else 'CONTRADICTED'}: {result.figure:g}; {result.power}")
        click.echo("entered into the agency's log, for `sovfed release`")
        ctx.exit(0 if result.passed else 1)
    ctx.exit(0 if publish(name, quick, json_path, Console()) else 1)
