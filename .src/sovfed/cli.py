"""The command `sovfed`: one group for each role, imported only when it is used.

This file names the roles' command modules but imports none of them, so that `sovfed --help` is instant. Errors that we
raise on purpose become one line and an exit code:

    0 done   1 the work failed   2 wrong usage or configuration   3 refused (identity, policy, privacy)   4 not running
"""

from __future__ import annotations

import codecs
import io
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Final, NamedTuple, NoReturn

import click

from sovfed import __version__
from sovfed.federation.errors import (
    ConfigError,
    IdentityError,
    PolicyError,
    PrivacyError,
    ServiceError,
    SovfedError,
)
from sovfed.federation.help import FoldingFormatter, Group
from sovfed.federation.text import in_other_words, visible

EXIT_CODES: Final[dict[type[SovfedError], int]] = {
    ConfigError: 2,
    IdentityError: 3,
    PolicyError: 3,
    PrivacyError: 3,
    ServiceError: 4,
}
NEWLINE: Final = "\n\t"  # which our own messages have
INTERRUPTED: Final = 130  # what a shell reports for SIGINT
click.Context.formatter_class = FoldingFormatter  # of every command


class Lazy(NamedTuple):
    """Where a command lives, and its line in `sovfed --help`."""

    module: str
    attribute: str
    help: str


COMMANDS: Final[dict[str, Lazy]] = {
    "demo": Lazy("sovfed.simulations.cli", "demo", "Build a federation on this machine, train, show the gain."),
    "run": Lazy("sovfed.server.cli.run", "cli", "Start, list, show, resume and stop training runs (agency)."),
    "evaluate": Lazy(
        "sovfed.server.cli.evaluate", "evaluate", "Score models at all institutions, side by side (agency)."
    ),
    "release": Lazy("sovfed.server.cli.release", "release", "Seal a run's model with all that is said of it (agency)."),
    "verify": Lazy(
        "sovfed.federation.release.cli", "verify", "Check a release by the authority's root alone (anyone)."
    ),
    "verifier": Lazy(
        "sovfed.federation.release.cli", "verifier", "Write `verify` as one file that needs `cryptography` alone."
    ),
    "incident": Lazy(
        "sovfed.federation.release.incident_cli", "incident", "Tell a regulator what a home's log has of a time."
    ),
    "evidence": Lazy(
        "sovfed.federation.evidence.frameworks.cli", "evidence", "Fill the table of a framework from this home."
    ),
    "server": Lazy("sovfed.server.cli.server", "cli", "Set up and run the aggregation server (agency)."),
    "client": Lazy("sovfed.clients.cli.institution", "cli", "Enrol and run an institution's node (a hospital, say)."),
    "model": Lazy("sovfed.clients.cli.use", "cli", "Use a trained model: predict, export, show (anyone)."),
    "generate": Lazy("sovfed.clients.cli.generate", "generate", "Write text by a language model (anyone)."),
    "authority": Lazy("sovfed.server.cli.authority", "cli", "Sign and revoke identities (certificate authority)."),
    "simulate": Lazy("sovfed.simulations.cli", "simulate", "Run a federation in one process (researcher)."),
    "partition": Lazy("sovfed.simulations.cli", "partition", "Show how a simulation cuts records into institutions."),
    "compare": Lazy("sovfed.simulations.cli_sweep", "compare", "Turn any set of runs into one table and figure."),
    "audit": Lazy("sovfed.simulations.cli_audit", "audit", "Attack the privacy claims of this installation."),
    "bench": Lazy("sovfed.simulations.cli_bench", "bench", "Measure sovfed against its peers on this machine."),
    "data": Lazy("sovfed.clients.cli.data", "data", "List the sources that records can come from."),
    "task": Lazy(
        "sovfed.clients.cli.propose", "task", "Propose, list, show and check tasks: what is learnt from what."
    ),
    "config": Lazy("sovfed.federation.cli", "config", "Show the configuration and where each value comes from."),
    "bundle": Lazy("sovfed.federation.bundle.cli", "bundle", "Pack all that a machine without a network needs."),
    "doctor": Lazy("sovfed.clients.cli.doctor", "doctor", "Check that this machine is ready, and say what to fix."),
}
# The extra whose libraries a command needs, where those of every installation do not suffice.
EXTRAS: Final[dict[str, str]] = {
    "run": "server",
    "server": "server",
    "release": "server",
    "evaluate": "server",
    **dict.fromkeys(("demo", "simulate", "partition", "compare", "config"), "simulate"),
    **dict.fromkeys(("audit", "bench"), "bench"),
}


class Root(Group):
    """A group that lists its commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        lazy = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(lazy.module), lazy.attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.help) for name, lazy in COMMANDS.items()])


@click.command(
    cls=Root,
    epilog="""\b
Examples:
  sovfed demo                               the whole thing, on this machine, in about a minute
  sovfed doctor                             is this machine ready?
  sovfed config show task=heart rounds=20   what would run, and who chose it
  sovfed run start task=heart rounds=20     train, on the agency's server
  sovfed COMMAND --help                     more examples
""",
)
@click.version_option(__version__, prog_name="sovfed")
@click.option("--debug", is_flag=True, help="Show the whole traceback of an error.")
def cli(debug: bool) -> None:
    """Train one model across institutions that keep their records at home."""


def main() -> NoReturn:
    """The script `sovfed`: run this process's command line and end with the code that this module's docstring gives."""
    from sovfed.federation.host.leaving import leave

    leave(lambda: run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; its exit code."""
    from sovfed.federation.host.quiet import be_quiet

    be_quiet()  # before flwr, mlflow or ray is imported
    _speak_any_encoding()
    try:
        return _run(arguments)
    except SovfedError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        click.echo(f"error: {visible(str(error), keep=NEWLINE)}", err=True)
        return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)
    except OSError as error:  # a folder without permission, a full disk: the operator's to mend, not a bug to report
        if "--debug" in arguments:
            traceback.print_exc()
        reason = error.strerror or str(error) or type(error).__name__
        message = f"{reason}: {error.filename}" if error.filename else reason
        if isinstance(error, NotADirectoryError):
            message += "; a part of this path is a file: name another place"
        click.echo(f"error: {visible(message)}", err=True)
        return 1
    except ModuleNotFoundError as error:
        if "--debug" in arguments or not (message := _advice(error, arguments)):
            raise
        click.echo(f"error: {message}", err=True)
        return EXIT_CODES[ConfigError]
    except (KeyboardInterrupt, click.Abort) as stopped:
        said = str(stopped) or str(stopped.__cause__ or "")  # Click puts its own in the place of Python's
        click.echo(visible(said or "interrupted", keep=NEWLINE), err=True)
        return INTERRUPTED


def _speak_any_encoding() -> None:
    """Have what a terminal's encoding lacks, as ε or a table's lines, come out in other words: it ends no command."""
    codecs.register_error("sovfed", in_other_words)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="sovfed")


def _advice(error: ModuleNotFoundError, given: Sequence[str]) -> str:
    """What to install for the command that was `given`, in one line; "" if it is no optional part that is missing."""
    from sovfed.federation.host.extras import advice

    command = next((name for name in given if name in COMMANDS), "")
    return advice(error.name or "", EXTRAS.get(command, ""))


def _run(args: Sequence[str]) -> int:
    try:
        result = cli.main(args=list(args), prog_name="sovfed", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return result if isinstance(result, int) else 0
