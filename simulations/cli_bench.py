"""`sovfed bench`: every number that the documents claim, measured anew, peers interleaved with us in one run."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sovfed.federation.help import Group

if TYPE_CHECKING:
    from rich.console import Console

    from sovfed.simulations.benchmarks.report import Files

FILE: Final = click.Path(dir_okay=False, path_type=Path)


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that every benchmark has: the command gets `files` and `console` to report to."""

    @click.option("--json", "json_path", type=FILE, help='Write {"rows": […], "ratios": {…}}.')
    @click.option("--csv", "csv_path", type=FILE, help="Write the rows as CSV.")
    @click.option("--plot", "plot_path", type=FILE, help="Draw the rows into a PNG.")
    @wraps(command)
    def wrapped(json_path: Path | None, csv_path: Path | None, plot_path: Path | None, **more: Any) -> None:
        from rich.console import Console

        from sovfed.simulations.benchmarks.report import Files

        command(files=Files(json_path, csv_path, plot_path), console=Console(), **more)

    return wrapped


@click.group(cls=Group)
def bench() -> None:
    """Compare sovfed with its peers, both measured interleaved in one run.

    \b
    Examples:
      sovfed bench rounds --quick
      sovfed bench rounds --json rounds.json --plot rounds.png
      sovfed bench institutions --quick --json institutions.json
      sovfed bench soak --quick --json soak.json
      sovfed bench load --quick --json load.json
      sovfed bench secagg --quick --json secagg.json
      sovfed bench privacy --quick --plot privacy.png
      sovfed bench private-step --quick
      sovfed bench noise
      sovfed bench simulation --quick --json simulation.json
      sovfed bench algorithms --quick --plot algorithms.png
      sovfed bench population --quick
      sovfed bench own-task --quick --json own-task.json
      sovfed bench release --quick --json release.json
      sovfed bench utility --heart /data/heart_disease
      sovfed bench language --quick --data /data/ja_law --json language.json
      sovfed bench persons --epsilon 8
      sovfed bench gpu --quick --json gpu.json
    """


@bench.command()
@click.option("--quick", is_flag=True, help="Few rounds: 3 minutes; on a busy machine take it by parts.")
@click.option(
    "--part",
    "parts",
    type=click.Choice(("bare", "stock", "memory", "nvflare")),
    multiple=True,
    help="Only this: against a bare stream, stock Flower or NVFlare, or what each process grows by; repeatable. "
    "Without it the first three.",
)
@click.option("--nvflare", type=click.Path(path_type=Path), help="Python of a virtual environment with NVFlare.")
@click.option(
    "--megabytes",
    type=click.IntRange(1, 4_000),
    multiple=True,
    help="Size of the vector for which processes are weighed, 100 by default; repeatable, for the slope.",
)
@reported
def rounds(
    quick: bool, parts: tuple[str, ...], nvflare: Path | None, megabytes: tuple[int, ...], files: Files,
    console: Console,
) -> None:  # fmt: skip
    """Round overhead (round wall − slowest institution's compute), 4 nodes, 10 KB and 40 MB, against stock Flower.

    \b
    Example:
      sovfed bench rounds --quick
      sovfed bench rounds --part memory --megabytes 100 --megabytes 400
      sovfed bench rounds --quick --part nvflare --nvflare other-venv/bin/python
    """
    from sovfed.simulations.benchmarks.rounds import DEFAULT, run

    run(quick=quick, files=files, console=console, parts=parts or DEFAULT, megabytes=megabytes, nvflare=nvflare)


@bench.command()
@click.option("--quick", is_flag=True, help="32 institutions only: under 6 minutes.")
@reported
def institutions(quick: bool, files: Files, console: Console) -> None:
    """Up to 32 institutions of real processes: who joins a run, how soon, and what each costs at rest.

    \b
    Example:
      sovfed bench institutions --quick
    """
    from sovfed.simulations.benchmarks.institutions import run

    run(quick=quick, files=files, console=console)


@bench.command()
@click.option("--quick", is_flag=True, help="400 rounds and two hours instead of 5,000 and 24: some minutes.")
@click.option("--minutes", type=click.FloatRange(min=0.5), help="Stop the run after so many minutes.")
@click.option("--hours", type=click.FloatRange(min=0), help="So many hours at rest, of a minute each.")
@reported
def soak(quick: bool, minutes: float | None, hours: float | None, files: Files, console: Console) -> None:
    """What grows in each process and home by 1,000 rounds, and by an hour at rest (compressed): slopes.

    \b
    Example:
      sovfed bench soak --quick
    """
    from sovfed.simulations.benchmarks.soak import run

    run(quick=quick, files=files, console=console, minutes=minutes, hours=hours)


@bench.command()
@click.option("--quick", is_flag=True, help="30 and 100 institutions: under 5 minutes.")
@click.option("--masks", is_flag=True, help="With secure aggregation, for up to 255 institutions.")
@click.option("--size", "sizes", type=click.IntRange(3, 4096), multiple=True, help="So many institutions; repeatable.")
@reported
def load(quick: bool, masks: bool, sizes: tuple[int, ...], files: Files, console: Console) -> None:
    """What an agency costs with 100, 300 and 1,000 institutions, and so with 10,000: processor, memory, bytes, disk.

    \b
    Example:
      sovfed bench load --quick
    """
    from sovfed.simulations.benchmarks.load import run

    run(quick=quick, masks=masks, sizes=sizes, files=files, console=console)


@bench.command()
@click.option("--quick", is_flag=True, help="Three turns instead of nine: under 3 minutes.")
@reported
def release(quick: bool, files: Files, console: Console) -> None:
    """Seconds to check a release, and a round's time with the exchange of the logs' heads over that without.

    \b
    Example:
      sovfed bench release --quick
    """
    from sovfed.simulations.benchmarks.release import run

    run(quick=quick, files=files, console=console)


@bench.command()
@click.option("--quick", is_flag=True, help="16 institutions, a million parameters: under 3 minutes.")
@reported
def secagg(quick: bool, files: Files, console: Console) -> None:
    """Secure aggregation against Flower's SecAgg+: CPU, bytes, memory and trips of a round, 0 and 2 dropouts.

    \b
    Example:
      sovfed bench secagg --quick
    """
    from sovfed.simulations.benchmarks.secagg import run

    run(quick=quick, files=files, console=console)


@bench.command()
@click.option("--quick", is_flag=True, help="Three runs instead of eight: under 3 minutes.")
@click.option("--tune", "tuning", is_flag=True, help="Try the whole grid of settings, and nothing else: long.")
@reported
def privacy(quick: bool, tuning: bool, files: Files, console: Console) -> None:
    """Accuracy of a trusted curator, distributed noise through secure aggregation, and each institution's own noise.

    \b
    Example:
      sovfed bench privacy --quick
    """
    from sovfed.simulations.benchmarks.privacy import run, tune

    if tuning:
        tune(console)
        return
    run(quick=quick, files=files, console=console)


@bench.command()
@click.option("--quick", is_flag=True, help="A quarter of the turns: some seconds.")
@reported
def noise(quick: bool, files: Files, console: Console) -> None:
    """Nanoseconds a sample of discrete Gaussian noise, beside generators that promise less.

    \b
    Example:
      sovfed bench noise --quick
    """
    from sovfed.simulations.benchmarks.noise import run

    run(quick=quick, files=files, console=console)


@bench.command("private-step")
@click.option("--quick", is_flag=True, help="A third of the turns: under a minute.")
@reported
def private_step(quick: bool, files: Files, console: Console) -> None:
    """CPU time of a private gradient step over a plain one, ours and each engine of Opacus.

    \b
    Example:
      sovfed bench private-step --quick
    """
    from sovfed.simulations.benchmarks.private_step import run

    run(quick=quick, files=files, console=console)


@bench.command()
@click.option("--quick", is_flag=True, help="One workload, two turns: under 3 minutes.")
@reported
def simulation(quick: bool, files: Files, console: Console) -> None:
    """CPU, wall, start-up and memory of simulated rounds, against Flower-Ray, pfl-research and a bare loop.

    pfl-research is installed into the user's cache folder at first, unless SOVFED_PFL_PYTHON names the python of an
    environment with pfl 0.6; where neither can be, it is left out. Without --quick: about 40 minutes.

    \b
    Example:
      sovfed bench simulation --quick
    """
    from sovfed.simulations.benchmarks.simulation import run
    from sovfed.simulations.benchmarks.simulation_private import measured

    run(quick=quick, files=files, console=console, more=measured)


@bench.command()
@click.option("--quick", is_flag=True, help="Two seeds instead of five: under 3 minutes.")
@reported
def algorithms(quick: bool, files: Files, console: Console) -> None:
    """SCAFFOLD, FedNova, FedBN and Ditto against FedAvg, each where its paper says that it helps.

    \b
    Example:
      sovfed bench algorithms --quick
    """
    from sovfed.simulations.benchmarks.algorithms import run

    run(quick=quick, files=files, console=console)


@bench.command()
@click.argument("overrides", nargs=-1)
@click.option("--quick", is_flag=True, help="12 rounds instead of 52.")
@click.option("--device", default="cpu", show_default=True, help="As client.device: cpu, cuda, rocm, mps or auto.")
@reported
def population(overrides: tuple[str, ...], quick: bool, device: str, files: Files, console: Console) -> None:
    """CPU, wall and memory of a round of 100 out of 1,000, 10,000 and 100,000 institutions, by both engines.

    OVERRIDES as for `sovfed simulate`, for another task or partition.

    \b
    Example:
      sovfed bench population --quick
    """
    from sovfed.simulations.benchmarks.population import run

    run(quick, device, overrides, files=files, console=console)


@bench.command("own-task")
@click.option("--quick", is_flag=True, help="Fewer turns: under 4 minutes.")
@click.option(
    "--before",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The folder `.src` of another version's checkout, to compare the steps of a bundled task with.",
)
@click.option(
    "--part", "parts", multiple=True, type=click.Choice(["memory", "csv", "engines", "steps"]),
    help="This alone; may be given several times.",
)  # fmt: skip
@reported
def own_task(quick: bool, before: Path | None, parts: tuple[str, ...], files: Files, console: Console) -> None:
    """Memory, CSV, engines and steps of tasks that are not ours, against the columns' bytes, pandas, Ray and torch.

    \b
    Examples:
      sovfed bench own-task --quick
      sovfed bench own-task --part csv
    """
    from sovfed.simulations.benchmarks.own_task import PARTS, run

    run(quick, before, files=files, console=console, parts=parts or PARTS)


@bench.command()
@click.option("--heart", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of the UCI files.")
@click.option(
    "--pneumonia", type=click.Path(exists=True, path_type=Path), help="pneumoniamnist.npz or the folder it lies in."
)
@click.option(
    "--statutes",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    multiple=True,
    help="Folder of one language's law; may be given for each language. Two seeds.",
)
@click.option("--quick", is_flag=True, help="Two seeds instead of five.")
@reported
def utility(
    heart: Path | None,
    pneumonia: Path | None,
    statutes: tuple[Path, ...],
    quick: bool,
    files: Files,
    console: Console,
) -> None:
    """Federated against pooled and lone training on every task, five seeds.

    \b
    Example:
      sovfed bench utility --quick
    """
    from sovfed.simulations.benchmarks.utility import run

    run(heart=heart, pneumonia=pneumonia, statutes=statutes, quick=quick, files=files, console=console)


@bench.command("language")
@click.option(
    "--data", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of one language's law, a file SITE.jsonl.xz a ministry.",
)  # fmt: skip
@click.option("--quick", is_flag=True, help="Few rounds, no ministry alone: about 12 minutes of one core.")
@click.option("--rounds", type=click.IntRange(2, 100_000), help="As many rounds instead.")
@click.option(
    "--part", "parts", multiple=True, type=click.Choice(["pooled", "rings", "steps", "alone"]),
    help="Only this: against the pooled model, rings of few bits, more local steps a round, or each ministry alone; "
    "repeatable. Without it all, with --quick the first two.",
)  # fmt: skip
@click.option("--deployed", is_flag=True, help="By real processes of all ministries: an hour and more for three seeds.")
@click.option(
    "--seed", "seeds", multiple=True, type=click.IntRange(0, 1000), default=(0, 1, 2), show_default=True,
    help="With --deployed; repeatable.",
)  # fmt: skip
@click.option(
    "--keep", type=click.Path(file_okay=False, path_type=Path),
    help="Write what each training comes to into this folder, from where the same command goes on.",
)  # fmt: skip
@click.option("--overhead", is_flag=True, help="Of a larger decoder at three ministries: what a round costs beyond it.")
@reported
def language_(
    data: Path, quick: bool, rounds: int | None, parts: tuple[str, ...], deployed: bool, seeds: tuple[int, ...],
    keep: Path | None, overhead: bool, files: Files, console: Console,
) -> None:  # fmt: skip
    """Bits per byte of a language model by ten ministries against the pooled one, and what a 16-bit ring costs.

    \b
    Examples:
      sovfed bench language --quick --data /data/ja_law
      sovfed bench language --part alone --rounds 400 --keep FOLDER --data /data/ja_law
      sovfed bench language --deployed --seed 0 --data /data/ja_law
      sovfed bench language --overhead --data /data/ja_law
    """
    from sovfed.simulations.benchmarks import language, language_deployed

    if overhead:
        language_deployed.overhead(data=data, files=files, console=console)
    elif deployed:
        language_deployed.run(data=data, rounds=rounds, seeds=seeds, files=files, console=console, keep=keep)
    else:
        language.run(data=data, quick=quick, rounds=rounds, files=files, console=console, parts=parts, keep=keep)


@bench.command()
@click.option(
    "--epsilon", type=click.FloatRange(0.01, 100.0), default=8.0, show_default=True, help="Over the whole run."
)
@reported
def persons(epsilon: float, files: Files, console: Console) -> None:
    """What privacy costs by the number of persons and of trained values, as the accountant has it: seconds.

    \b
    Example:
      sovfed bench persons
    """
    from sovfed.simulations.benchmarks.persons import run

    run(epsilon=epsilon, files=files, console=console)


@bench.command()
@click.option(
    "--device", default="auto", show_default=True, help="As client.device: cpu, cuda, cuda:1, mps, auto, or a list."
)
@click.option("--precision", help="As client.precision. Default: float32 on a CPU, else bf16.")
@click.option("--steps", type=click.IntRange(1, 100_000), help="Of a round. Default: 20 on a CPU, else 100.")
@click.option("--quick", is_flag=True, help="Three turns instead of ten: on a CPU under 2 minutes.")
@reported
def gpu(device: str, precision: str | None, steps: int | None, quick: bool, files: Files, console: Console) -> None:
    """Tokens a second of local training, against a plain loop of torch and the device's peak; what masking takes.

    A decoder of 1.6 million values on a CPU, of 218 million elsewhere.

    \b
    Examples:
      sovfed bench gpu --quick --device cpu --json gpu.json
      sovfed bench gpu --device cuda --precision bf16 --steps 200
      sovfed bench gpu --quick --device cuda:0,cuda:1
    """
    from sovfed.simulations.benchmarks.gpu import run

    run(device=device, precision=precision, quick=quick, steps=steps, files=files, console=console)
