"""Each of an institution's processes, with what it must not have taken away first.

`python -m sovfed.clients.node.sandbox trainer|supernode|gateway --home H …` seals itself, tries what it should no
longer be able to do, writes that to `home/run/NAME/isolation.json`, and then runs that process's own main, whose
imports may start threads.

    trainer     no network: a namespace of its own, and a filter that lets it listen on a Unix socket and no more;
                reads records and identity, writes ledger, journal, log and personal models
    supernode   reads identity and secrets; not the records
    gateway     writes identity (revocation lists) and what it saw of others' logs, reads secrets and the own log; not
                the records
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from sovfed.clients.orders.places import FOLDERS, ORDERS, STATE
from sovfed.federation.errors import ServiceError, SovfedError
from sovfed.federation.files import private_directory
from sovfed.federation.host import landlock, sandbox, settings
from sovfed.federation.host.landlock import DEVICE, LISTEN, READ, WRITE, Rule
from sovfed.federation.host.leaving import leave

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Name = Literal["trainer", "supernode", "gateway"]
NAMES: Final[tuple[Name, ...]] = ("trainer", "supernode", "gateway")
SOCKET: Final = "trainer.sock"
RUN: Final = Path("run")  # a folder for each process, which none of the others may enter
RULES: Final[dict[Name, dict[str, int]]] = {  # by the part of the home
    "trainer": {
        "": LISTEN, "policy.yaml": READ, "identity": READ, "secagg": WRITE, "privacy": WRITE, "personal": WRITE,
        "received": WRITE, "tasks": READ, str(ORDERS): READ, str(STATE): WRITE, "spool/requests": READ,
        "spool/replies": WRITE, "audit": WRITE, "audit-key": READ, "witness": READ,
    },
    "supernode": {"identity": READ, "secrets": READ, "state": WRITE},
    "gateway": {"identity": WRITE, "secrets": READ, "state": WRITE, "spool": WRITE, "audit": READ, "witness": WRITE},
}  # fmt: skip
EVIDENCE: Final = ("audit", "audit-key", "witness")  # as federation/evidence/keys.py has them, which is slow to load
GPU: Final = ("nvidia*", "dri", "kfd")  # CUDA and ROCm work through device files, not through sockets


def enter(name: Name, home: Path, *records: Path, files: Sequence[Path] = (), local: bool = True) -> sandbox.Isolation:
    """Seal this process as institution process `name`, and say what holds.

    `records` is where those of each study lie, `files` what else the trainer needs to read them, as a database's URL.
    Without `local` a process with a network has no Unix sockets.
    Raises ServiceError if it holds a socket of the network already.
    """
    home = home.absolute()
    os.chdir(home)
    own = home / RUN / name
    kept = map(Path, ("state", "privacy", "personal", "received", "tasks", *EVIDENCE))
    for folder in (RUN, RUN / name, *kept, *FOLDERS):
        private_directory(home / folder)
    os.environ["HOME"] = os.environ["TMPDIR"] = str(own)  # no settings of the user's, no files among everybody's
    if name == "trainer":
        (home / SOCKET).unlink(missing_ok=True)  # a dead trainer's: sealed, it may make a socket but remove nothing
    isolation = seal_as(name, home, *records, files=files, local=local)
    sandbox.write_isolation(own, isolation)
    return isolation


def seal_as(
    name: Name, home: Path, *records: Path, files: Sequence[Path] = (), local: bool = True
) -> sandbox.Isolation:
    """Take away what process `name` must not have, and try; nothing is written. What the audit plays its attacks in."""
    network = name != "trainer"
    rules = [*sandbox.system_rules(), *_rules(name, home, records, files)]
    isolation = sandbox.seal(rules, network=network, keep=0 if network else sandbox.FILE_CAPABILITIES, local=local)
    within_reach = next((path for path in (*records, *files) if sandbox.opens(path)), None) if network else None
    if within_reach is not None:
        isolation = dataclasses.replace(isolation, records=_why(isolation, within_reach))
    return isolation


def _rules(name: Name, home: Path, records: Sequence[Path], files: Sequence[Path]) -> Iterator[Rule]:
    for relative, rights in {**RULES[name], settings.FILE: READ, str(RUN / name): WRITE}.items():
        yield Rule(home / relative, rights)
    if name == "trainer":
        yield from (Rule(path, READ) for path in (*records, *files))
        for kept in (home / "tasks").glob("*/base"):  # as `tasks/shelf.py` writes it, whose imports start threads
            folder = Path(kept.read_text(encoding="utf-8"))
            yield from (Rule(path.resolve(), READ) for path in (folder, *folder.glob("*")))  # links into a store, too
        yield from (Rule(_folder_of(path, home), READ) for path in records)
        for pattern in GPU:
            yield from (Rule(device, DEVICE) for device in Path("/dev").glob(pattern))


def _folder_of(records: Path, home: Path) -> Path:
    """The nearest folder that is there: a file that is replaced, or a share that is mounted later, can be read too.

    Just `records` where that folder would hold the home, and with it the other processes' secrets.
    """
    nearest = next((folder for folder in records.parents if landlock.is_folder(folder)), records)
    return records if home.resolve().is_relative_to(nearest.resolve()) else nearest


def _why(isolation: sandbox.Isolation, records: Path) -> str:
    if isolation.files:
        return f"{records} lies where programs or keys do; keep it elsewhere"
    return "same user as the trainer, and this kernel has no Landlock"


@dataclasses.dataclass(frozen=True)
class Places:
    """Where the records of all studies lie, and the files that say how to read them; none for what is built in."""

    records: tuple[Path, ...] = ()
    files: tuple[Path, ...] = ()
    scheduled: bool = False  # the trainer is a cluster's job: whoever can ask the scheduler for one reads the records


def places_of(config: object) -> Places:
    """What the ClientConfig `config`, as plain values, names; nothing where it is no such thing."""
    by_setting: dict[str, list[Path]] = {name: [] for name in settings.PLACES}
    for data in _each_data(config):
        for name, paths in by_setting.items():
            path = data.get(name) if isinstance(data, dict) else None
            if isinstance(path, str):
                paths.append(Path(path).expanduser())
    records, files = by_setting.pop("path"), [path for paths in by_setting.values() for path in paths]
    return Places(tuple(dict.fromkeys(records)), tuple(files), _scheduled(config))


def _scheduled(config: object) -> bool:
    cluster = config.get("cluster") if isinstance(config, dict) else None
    return isinstance(cluster, dict) and cluster.get("scheduler", "none") != "none"


def _each_data(config: object) -> Iterator[object]:
    """The settings of `data`, and of each study's data."""
    if not isinstance(config, dict):
        return
    yield config.get("data")
    studies = config.get("studies")
    for study in studies.values() if isinstance(studies, dict) else ():
        yield study.get("data") if isinstance(study, dict) else None


def _passed_places(config: Path) -> Places:
    """Those of the ClientConfig in file `config`, not checked yet: the process itself says what is wrong."""
    try:
        return places_of(settings.passed_settings(config))
    except (OSError, SovfedError, RuntimeError):  # the last: nobody's home folder
        return Places()


def main(arguments: list[str] | None = None) -> int:
    """Seal this process, then be what it is called."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True, help="file with a ClientConfig as JSON")
    argv = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(argv)
    try:
        sandbox.close_descriptors()
        places = _passed_places(options.config)
        isolation = enter(options.name, options.home, *places.records, files=places.files, local=not places.scheduled)
    except (ServiceError, OSError) as error:
        sys.stderr.write(f"{options.name}: cannot be sealed: {error}\n")
        return 1
    if options.name == "trainer":
        return int(import_module("sovfed.clients.trainer.process").main(argv[1:], isolation))
    return int(import_module(f"sovfed.clients.node.{options.name}").main(argv[1:]))


if __name__ == "__main__":
    leave(main)
