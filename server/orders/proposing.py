"""A run that is proposed before it is started: its order made and kept, for people of the agency to approve."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Final

from sovfed.federation.errors import ConfigError
from sovfed.federation.files import alone, private_directory, write_private
from sovfed.federation.orders.approving import approve as approved_by
from sovfed.federation.orders.events import OrderEvent, tell
from sovfed.federation.orders.order import Proposal, read_proposal
from sovfed.federation.text import plain_name, to_base64
from sovfed.server.orders.making import FILE, keys_of, make_order, read_order, write_order
from sovfed.server.runs.folders import STATE, beginning, run_folder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from sovfed.federation.archive.signer import SigningKey
    from sovfed.federation.config import Config
    from sovfed.federation.orders.beginning import Beginning
    from sovfed.federation.orders.order import RunOrder

OVERRIDES: Final = "proposed.json"  # in the run's folder


def configured(home: Path, overrides: Sequence[str]) -> Config:
    """The run's configuration under the agency's own settings, its task looked at. Raises SovfedError."""
    from sovfed.federation.compose import compose
    from sovfed.federation.tasks.conformance import require_works
    from sovfed.federation.tasks.registry import configured_task
    from sovfed.server.home import behind_cohort, load_settings, with_settings
    from sovfed.server.own_tasks import offer, require_reviewed

    offer(home)
    settings = load_settings(home)
    config = with_settings(compose(behind_cohort(settings, overrides)).config, settings, overrides)
    require_reviewed(home, config)  # before its code is imported here
    require_works(configured_task(config.task))
    return config


def require_task(overrides: Sequence[str]) -> None:
    """Raise ConfigError unless the words name a task: what real institutions train is nobody's default."""
    names = [word.lstrip("+").partition("=")[0] for word in overrides]
    if not {"task", "task.name", "task.file", "experiment"}.intersection(names):
        raise ConfigError("which task? task=NAME or task=FILE.yaml (`sovfed task list`)")


def propose(
    home: Path, name: str, config: Config, overrides: Sequence[str], files: Mapping[str, bytes] | None = None,
    begins: Beginning | None = None,
) -> Proposal:  # fmt: skip
    """Make and keep the order of run `name`, with `files` beside it; nothing is asked of an institution.

    It `begins` with that model, unless told with the one that `config` names.
    Raises ConfigError if the run is there.
    """
    from sovfed.federation.tasks.registry import configured_task
    from sovfed.server.rounds.loop import whole_run
    from sovfed.server.rounds.privacy import PrivacyPlan, vector_size

    folder = run_folder(home, name)
    if folder.exists():
        raise ConfigError(f"run '{name}' is there already; choose another run_name")
    task, kept_name = configured_task(config.task), plain_name(name)
    plan = PrivacyPlan.make(config, kept_name, vector_size(config, task)) if config.privacy.private else None
    request = whole_run(config, task, "proposed", kept_name, plan)
    keys = keys_of(home, config.order.cohort)
    if begins is None:
        begins = beginning(home, config)
    proposal = Proposal(make_order(config, kept_name, request, time.time(), keys, begins))
    private_directory(folder)
    for file, data in (files or {}).items():
        write_private(folder / file, data)
    write_private(folder / OVERRIDES, json.dumps(list(overrides)).encode())
    write_order(folder, proposal)
    tell(home, OrderEvent("proposed", proposal.order.digest, kept_name))
    return proposal


def proposed_overrides(home: Path, name: str) -> tuple[str, ...]:
    """The overrides that run `name` was proposed with. Raises ConfigError if it was not, or has begun."""
    folder = run_folder(home, name)
    path = folder / OVERRIDES
    if not path.exists():
        raise ConfigError(f"run '{name}' was not proposed; `sovfed run propose` does")
    if (folder / STATE).exists():
        raise ConfigError(f"run '{name}' has begun; `sovfed run resume {name}` takes it up")
    return tuple(json.loads(path.read_bytes()))


def approve(path: Path, read: RunOrder, person: SigningKey) -> Proposal:
    """Add the approval of `person` to the order in the file `path`, which must be the one that was `read`.

    Raises ConfigError if it is another by now.
    """
    with alone(path.resolve().parent):
        proposal = read_proposal(path.read_bytes(), str(path))
        if proposal.order != read:
            raise ConfigError(f"{path}: it holds another order than the one that was read; read it again")
        proposal = approved_by(proposal, person)
        write_private(path, proposal.to_bytes())
    key = to_base64(person.certificate)
    tell(home_of(path), OrderEvent("approved", proposal.order.digest, proposal.order.run, str(person.identity), key))
    return proposal


def home_of(path: Path) -> Path | None:
    """The agency's home, if the order lies in one: it may be read and approved on another machine."""
    home = path.resolve().parents[2] if len(path.resolve().parents) > 2 else None
    return home if home is not None and (home / "identity").is_dir() else None


def order_file(home: Path, name: str) -> Path:
    """The file of the order of run `name`. Raises ConfigError if it has none."""
    folder = run_folder(home, name)
    if read_order(folder) is None:
        raise ConfigError(f"run '{name}' has no order yet; `sovfed run propose` makes one, and so does its start")
    return folder / FILE
