"""The runs of an agency as their folders tell them, checked against what Flower says of the coordinator's process."""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.config import Config, stored
from sovfed.federation.errors import ConfigError, EvidenceError, ServiceError
from sovfed.federation.files import damaged, read_object, read_private, read_whole, write_private
from sovfed.federation.host.status import is_locked
from sovfed.federation.orders.beginning import Beginning
from sovfed.federation.schema import bind, nearest
from sovfed.federation.text import NAME, NAME_IN_WORDS, NAME_LENGTH
from sovfed.server.network.presence import read_presence
from sovfed.server.orders.approved import require_approved
from sovfed.server.orders.beginning import beginning as beginning_with
from sovfed.server.orders.beginning import keep_origin, origin
from sovfed.server.orders.making import FILE as ORDER
from sovfed.server.orders.making import read_order
from sovfed.server.own_tasks import in_folder, require_reviewed
from sovfed.server.runs.coordinators import LOCK, RUN_STATE, coordinator_of, send
from sovfed.server.runs.release import MODEL

if TYPE_CHECKING:
    from filelock import FileLock

    from sovfed.server.runs.control import ControlClient

STATE: Final = RUN_STATE
TRACKING: Final = "tracking.uri"  # with its password, for the coordinator alone; 0600
STARTING: Final = "starting"
INTERRUPTED: Final = "interrupted"  # ended without being asked to: `recovery.py` takes it up
STOPPING: Final = "stopping"  # by the operator
DAMAGED: Final = "damaged"  # its state cannot be read: a person restores it, or takes the folder away
PULSE: Final = "pulse"  # touched by the coordinator while it goes on
UNSENT: Final = "unsent.json"  # what is to be done at MLflow, which was away
ACTIVE: Final = (STARTING, "running", INTERRUPTED)
FILE: Final = "task.yaml"  # of a run whose task is a file
BEGINNING: Final = "start.safetensors"  # of one that trains a model further
MAX_START_BYTES: Final = 1 << 35  # as any model's file
NEEDED: Final = {"status": str, "reason": str, "flower_run_id": int, "started": int | float, "config": dict}
LOCK_S: Final = 30.0  # a coordinator that is told to stop finishes its tracking first
SETTLE_S: Final = 2.0  # from a task's end in Flower's books to the coordinator's last word in the folder


def run_folder(home: Path, name: str) -> Path:
    """The folder of run `name`; ConfigError unless it is a name."""
    if not NAME.fullmatch(name) or len(name) > NAME_LENGTH:
        raise ConfigError(f"a run's name must be 1 to {NAME_LENGTH} {NAME_IN_WORDS}, got {name[:80]!a}")
    return home / "runs" / name


def new_run_name(config: Config) -> str:
    """The configured name, or task, date and a random part."""
    return config.run_name or f"{config.task.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def lock(folder: Path) -> FileLock:
    """The lock that the one process that may write into a run's folder holds, until it ends."""
    from filelock import FileLock

    return FileLock(folder / LOCK, timeout=LOCK_S, mode=0o600)


def is_held(folder: Path) -> bool:
    """Whether a process has the run in hand. The kernel frees the lock of one that died, a reboot all."""
    return is_locked(folder / LOCK)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    from filelock import Timeout

    try:
        with lock(folder):
            yield
    except Timeout as error:
        raise ServiceError(f"the coordinator of run '{folder.name}' has not ended within {LOCK_S:g} s") from error


def write_state(folder: Path, state: dict[str, Any], status: str, reason: str = "") -> None:
    """Replace the run's state file atomically."""
    write_private(folder / STATE, json.dumps({**state, "status": status, "reason": reason, "at": time.time()}).encode())


def start_run(
    control: ControlClient, home: Path, name: str, config: Config, *, resume: bool, by_itself: bool = False
) -> int:
    """Ask Flower to start the coordinator of run `name`; Flower's run id. A name is used once, but for resuming.

    `by_itself`: not where the run has ended meanwhile, since nobody asked. Raises ConfigError, and PolicyError where
    approvals of its order are missing.
    """
    folder, before = run_folder(home, name), None
    if (folder / STATE).exists():
        before = read_state(home, name)["flower_run_id"]
        if not resume:
            raise ConfigError(f"run '{name}' exists; choose another run_name or `sovfed run resume {name}`")
        if read_summary(home, name) is not None:  # or its model would be registered once more
            raise ConfigError(
                f"run '{name}' has finished; `sovfed run show {name}` tells where its model lies, and "
                f"`sovfed run start … start={name}` trains it further, for more rounds"
            )
        with contextlib.suppress(ServiceError):  # it has ended already, as it should
            control.stop_run(before)
    archive = require_reviewed(home, config)
    require_approved(home, name, read_order(folder), config.server.min_approvers)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(folder):  # the last coordinator has written its last word; the next one waits for ours
        if (read_state(home, name)["flower_run_id"] if (folder / STATE).exists() else None) != before:
            raise ConfigError(f"run '{name}' was started by somebody else at the same moment; `sovfed run show {name}`")
        if by_itself and (status := read_state(home, name)["status"]) not in ACTIVE:
            raise ConfigError(f"run '{name}' is {status} by now")
        config = _with_own_task(folder, config) if archive is None else in_folder(folder, config, archive)
        config = _with_own_start(home, folder, config)
        run_id = control.start_run({"name": name, "resume": resume})
        if config.tracking.uri is not None:
            write_private(folder / TRACKING, config.tracking.uri.encode())
        state = {"name": name, "flower_run_id": run_id, "started": time.time(), "config": stored(config)}
        write_state(folder, state, "starting")
    return run_id


def _with_own_task(folder: Path, config: Config) -> Config:
    """`config` with the task's file, if it has one, copied into the run's folder: what is trained stays what it was."""
    if config.task.file is None or Path(config.task.file) == folder / FILE:
        return config
    from sovfed.federation.tasks.shelf import read_bounded

    write_private(folder / FILE, read_bounded(Path(config.task.file)))
    return replace(config, task=replace(config.task, file=str(folder / FILE)))


def _with_own_start(home: Path, folder: Path, config: Config) -> Config:
    """`config` with the model that it trains further, a file's or a run's, copied into the run's folder."""
    start, own = config.task.start, folder / BEGINNING
    if start is None or Path(start) == own:
        return config
    _, content, whence = _start_file(home, start)
    write_private(own, content)
    keep_origin(own, *whence)
    return replace(config, task=replace(config.task, start=str(own)))


def _start_file(home: Path, start: str) -> tuple[Path, bytes, tuple[str, str]]:
    """The file of the model that `task.start` names, a path or a run, what is in it, and its `origin`.

    Raises ConfigError.
    """
    run = "" if Path(start).exists() else start
    path = run_folder(home, run) if run else Path(start)
    path = path / MODEL if path.is_dir() else path
    try:
        return path, read_whole(path, MAX_START_BYTES), origin(path, run)
    except (EvidenceError, OSError) as error:
        raise ConfigError(f"task.start={start}: neither a model's file or folder nor a finished run") from error


def beginning(home: Path, config: Config) -> Beginning:
    """The model that a run of `config` will begin with, as its order names it. Raises SovfedError."""
    if config.task.start is None:
        return Beginning()
    path, _, (words, file) = _start_file(home, config.task.start)
    begins = beginning_with(replace(config, task=replace(config.task, start=str(path))))
    return replace(begins, start_from=words, start_file=file)


def stop_run(control: ControlClient, home: Path, name: str) -> None:
    """End the run's coordinator, if it has one, and wait until it has ended; the checkpoint stays."""
    folder, state = run_folder(home, name), read_state(home, name)
    if state["status"] not in ACTIVE:
        return
    write_state(folder, state, STOPPING)  # so that nobody takes it up again
    send(coordinator_of(folder), signal.SIGTERM)  # at once, and also while the superlink is away
    with contextlib.suppress(ServiceError):  # it has ended already, or the superlink is away
        control.stop_run(state["flower_run_id"])
    with _locked(folder):
        last = read_state(home, name)
        if last["status"] in (*ACTIVE, STOPPING):  # it had no time to say so itself
            write_state(folder, last, "stopped", "stopped by the operator")
    if last["flower_run_id"] != state["flower_run_id"]:  # it was being taken up: the new task is handed to nobody
        with contextlib.suppress(ServiceError):
            control.stop_run(last["flower_run_id"])


def stored_config(home: Path, name: str, run_id: int | None = None) -> Config:
    """The configuration that run `name` was started with; with `run_id`, ConfigError unless as that Flower run."""
    state, uri = read_state(home, name), run_folder(home, name) / TRACKING
    if run_id is not None and state["flower_run_id"] != run_id:
        raise ConfigError(f"run '{name}' was started as Flower's run {state['flower_run_id']}, not {run_id}")
    config = _moved_along(run_folder(home, name), bind(Config, state["config"], "config"))
    if config.tracking.uri is None:
        return config
    return replace(config, tracking=replace(config.tracking, uri=read_private(uri).decode()))


def _moved_along(folder: Path, config: Config) -> Config:
    """`config` with the run's own copies of its files where they lie now: its home may have been moved since."""
    task = config.task
    if task.file is not None and (folder / (name := Path(task.file).name)).is_file():
        task = replace(task, file=str(folder / name))
    if task.start is not None and (folder / BEGINNING).is_file():
        task = replace(task, start=str(folder / BEGINNING))
    return replace(config, task=task)


def read_run(home: Path, name: str, control: ControlClient | None = None) -> dict[str, Any]:
    """The run's state: name, task, status, reason, rounds, rounds_done, institutions, started, flower_run_id, presence.

    `presence` says who has joined and who is missing since when; None while nobody has been asked. Raises ConfigError
    if there is no such run, or its state is damaged.
    """
    try:
        return _read_run(home, name, control)
    except (LookupError, TypeError, ValueError) as error:  # settings that no version has written
        folder = run_folder(home, name)
        raise damaged(folder / STATE, _away(folder)) from error


def _read_run(home: Path, name: str, control: ControlClient | None) -> dict[str, Any]:
    from sovfed.server.runs.curves import read_rounds

    folder, state = run_folder(home, name), read_state(home, name)
    over = state["status"] in (*ACTIVE, STOPPING) and not is_held(folder)
    if over:  # what it said last before it ended, perhaps since we have read
        state = read_state(home, name)
    status, reason, lines = state["status"], state["reason"], read_rounds(folder)
    presence = read_presence(folder)
    if over and status in ACTIVE and _is_over(control, state):
        status, reason = INTERRUPTED, reason or "its coordinator ended without a word; `sovfed run logs` may say why"
    elif over and status == STOPPING:
        status = "stopped"
    return {
        "name": name,
        "task": state["config"]["task"]["name"],
        "status": status,
        "reason": reason,
        "rounds": state["config"]["rounds"],
        "min_cohort": state["config"]["server"]["min_cohort"],
        "cohort": list(state["config"].get("order", {}).get("cohort", ())),
        "rounds_done": lines[-1]["round"] if lines else 0,
        "round_deadline_s": state["config"]["server"]["round_deadline_s"],
        "epsilon": _epsilon(state["config"]["privacy"]),
        "institutions": len(lines[-1]["participants"]) if lines else 0,
        "started": state["started"],
        "resumable": status in (*ACTIVE, "failed", "stopped") and bool(state.get("resumable", True)),
        "flower_run_id": state["flower_run_id"],
        "presence": None if presence is None else {**asdict(presence), "sentence": presence.sentence()},
    }


def _epsilon(privacy: dict[str, Any]) -> float | None:
    """ε that the run is planned for; None of one without privacy."""
    return float(privacy["epsilon"]) if privacy["mechanism"] != "none" else None


def _is_over(control: ControlClient | None, state: dict[str, Any]) -> bool:
    """Whether a run that no process has in hand waits to be taken up, rather than for its first coordinator."""
    if state["status"] != STARTING:
        return True
    if control is None:
        return False
    try:
        return control.is_over(state["flower_run_id"]) and time.time() - float(state["at"]) > SETTLE_S
    except ServiceError:  # the superlink is away; the folder is all there is to go by
        return False


def read_runs(home: Path, control: ControlClient | None = None) -> list[dict[str, Any]]:
    """All runs, the newest first. One whose state cannot be read hides no other: it is DAMAGED, and says why."""
    folders = [path.parent for path in (home / "runs").glob(f"*/{STATE}")]
    return sorted((_readable(home, path, control) for path in folders), key=lambda run: -float(run["started"]))


def _readable(home: Path, folder: Path, control: ControlClient | None) -> dict[str, Any]:
    try:
        return read_run(home, folder.name, control)
    except (ConfigError, OSError) as error:
        return {
            "name": folder.name, "task": "", "status": DAMAGED, "reason": str(error), "rounds": 0, "min_cohort": 0,
            "cohort": [], "rounds_done": 0, "round_deadline_s": 0.0, "epsilon": None, "institutions": 0,
            "started": folder.stat().st_mtime, "resumable": False, "flower_run_id": 0, "presence": None,
        }  # fmt: skip


def read_summary(home: Path, name: str) -> dict[str, Any] | None:
    """The finished run's summary, None before. Raises ConfigError if it is damaged."""
    path = run_folder(home, name) / "summary.json"
    return read_object(path, otherwise=_away(path.parent)) if path.exists() else None


def follow_log(home: Path, name: str, follow: bool) -> Iterator[str]:
    """The lines of the coordinator's log; with `follow`, until the run has ended."""
    from sovfed.server.runs.control import log_path

    path = log_path(home, read_state(home, name)["flower_run_id"])
    if not path.exists():
        raise ConfigError(f"run '{name}' has no log yet at {path}")
    with path.open(encoding="utf-8", errors="replace") as file:
        while True:
            ended = not follow or read_run(home, name)["status"] not in ACTIVE  # asked before the read
            yield from file
            if ended:
                return
            time.sleep(0.3)


def read_state(home: Path, name: str) -> dict[str, Any]:
    """The run's state file, as it stands. Raises ConfigError if there is no such run, or the file is damaged."""
    path = run_folder(home, name) / STATE
    if not path.exists() and (path.parent / ORDER).exists():
        raise ConfigError(
            f"run '{name}' is proposed and has not begun: `sovfed run explain {name}` tells of it, `sovfed run start "
            f"--proposed {name}` begins it"
        )
    if not path.exists():
        names = [state.parent.name for state in (home / "runs").glob(f"*/{STATE}")]
        raise ConfigError(f"there is no run '{name}'{nearest(name, names)}")
    return read_object(path, NEEDED, _away(path.parent))


def _away(folder: Path) -> str:
    return f"move {folder} out of the home, and start another run"
