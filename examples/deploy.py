"""The examples, deployed: certificate authority, agency and three institutions as real processes on this machine.

    python examples/frozen_image/make_base.py && python examples/text_lora/make_base.py
    pip install ./examples          # in a real federation: at the agency and at each institution, the same wheel
    python examples/deploy.py [NAME …] [--quick] [--json FILE]

Each example is a study of the same three institutions, which have one identity and one ledger. It is trained twice,
with secure aggregation, and with differential privacy too; every figure is of the records that all institutions hold
out.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from study import DELTA, NAMES, Study

from sovfed.clients.data import load_records
from sovfed.clients.home.own_tasks import known_task
from sovfed.clients.ledger.entries import Budget
from sovfed.clients.training.local import LocalTraining
from sovfed.federation.compose import compose
from sovfed.federation.config import Config, DataConfig, StudyConfig
from sovfed.federation.errors import ServiceError
from sovfed.federation.plan import BUILT_IN
from sovfed.federation.tasks import summarise
from sovfed.federation.tasks.registry import configured_task, names
from sovfed.server.cli.run import watch
from sovfed.server.runs import folders as runs
from sovfed.server.runs.release import read_model
from sovfed.simulations.baselines import merge
from sovfed.simulations.deployment import POLICY, Institution, LocalFederation

EXAMPLES: Final = ("survival", "frozen_image", "text_lora", "regression", "multilabel")
PERSONS: Final = 1_000  # as the policies declare; each study has fewer
BUDGET: Final = Budget(epsilon=1_000, annual_epsilon=500, delta=DELTA, population=PERSONS, max_share_per_run=1.0)
ROW: Final = "| {example} | {metric} | {pooled:.3f} | {federated:.3f} | {private:.3f} | {epsilon:.2f} |"
PLAIN, PRIVATE = "federated", "private"


def study_of(name: str) -> Study:
    """The example in that folder, on the base that the installed package has."""
    module = importlib.import_module(f"{name}.run")
    if not hasattr(module, "study"):
        return module.STUDY  # type: ignore[no-any-return]
    installed = importlib.import_module(f"sovfed_examples.{name}.task").BASE
    return module.study(installed)  # type: ignore[no-any-return]


def config_of(study: Study, private: bool, quick: bool) -> Config:
    """What the agency starts: an installed task by its name, or a task.yaml by its path."""
    task = study.task if isinstance(study.task, Path) else study.task.name
    settings = study.settings(private, quick)
    return compose([f"task={task}", *(f"{key}={value}" for key, value in settings.items())]).config


def data_of(study: Study, folder: Path, site: str) -> DataConfig:
    """Where an institution's records of a study lie."""
    (file,) = (folder / study.name).glob(f"{site}.*")
    return DataConfig(source=study.source, path=str(file), site=site)


def institutions(studies: Sequence[Study], folder: Path) -> Iterator[Institution]:
    """Three institutions with the records of each study."""
    for site in NAMES:
        listed = {study.name: StudyConfig(_entry(study), data_of(study, folder, site)) for study in studies}
        yield Institution(site, DataConfig(source="none"), listed)


def _entry(study: Study) -> str:
    return known_task(str(study.task)) if isinstance(study.task, Path) else study.task.name


def federation_of(studies: Sequence[Study], folder: Path) -> LocalFederation:
    """The three institutions, their agency and its authority, not started."""
    for study in studies:
        study.write(folder / "records" / study.name)
    policy = dataclasses.replace(POLICY, allowed_tasks=names(), allowed_optimizers=BUILT_IN, privacy=BUDGET)
    files = [str(study.task) for study in studies if isinstance(study.task, Path)]
    sites = list(institutions(studies, folder / "records"))
    return LocalFederation(folder / "federation", sites, config_of(studies[0], False, True), policy, files)


def trained(federation: LocalFederation, study: Study, config: Config, run: str) -> float:
    """The metric of the model that run `run` of `study` ends with. Raises ServiceError if it ends otherwise."""
    federation.start_run(run, config)
    ended = watch(federation.home, run, quiet=True)
    if ended["status"] != "finished":
        raise ServiceError(f"{run}: the run {ended['status']}: {ended['reason']}; logs in {federation.home / 'logs'}")
    task, model = configured_task(config.task), read_model(runs.run_folder(federation.home, run))
    data = [site.studies[study.name].data for site in federation.institutions]
    records = merge([load_records(task, part) for part in data])
    sums = LocalTraining(task, records, site="", device="cpu").evaluate(model.vector, model.scale)
    return summarise(task, sums, model.scale)[study.metric]


def deployed(studies: Sequence[Study], folder: Path, quick: bool = False) -> Iterator[dict[str, object]]:
    """The figures of each study, plain and private, all on one federation in `folder`."""
    with federation_of(studies, folder) as federation:
        for study in studies:
            line: dict[str, object] = {"example": study.name, "metric": study.metric}
            line["pooled"] = study.pooled(folder / "records" / study.name)
            for name in (PLAIN, PRIVATE):
                config = config_of(study, name == PRIVATE, quick)
                line[name] = trained(federation, study, config, f"{study.name}-{name}")
            line["epsilon"] = (runs.read_summary(federation.home, f"{study.name}-{PRIVATE}") or {}).get("epsilon")
            yield line


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("examples", nargs="*", metavar="NAME", help=f"of {', '.join(EXAMPLES)}; all, if none is named")
    parser.add_argument("--quick", action="store_true", help="a few rounds")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    chosen = options.examples or EXAMPLES
    if unknown := set(chosen) - set(EXAMPLES):
        parser.error(f"no example {sorted(unknown)}: there are {', '.join(EXAMPLES)}")
    if set(chosen) != {"survival"} and "diabetes" not in names():
        print("the examples' package is not installed: pip install ./examples", file=sys.stderr)
        return 2
    lines = []
    print("| example | metric | pooled | deployed | deployed, private | ε |\n| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(prefix="sovfed-examples-") as folder:
        for line in deployed([study_of(name) for name in chosen], Path(folder), options.quick):
            print(ROW.format(**line), flush=True)
            lines.append(line)
    if options.json:
        options.json.write_text(json.dumps(lines, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
