"""What an optimizer carries from step to step, kept at the institution between two rounds of a run (`task.keep_state`).

Moments of the gradients of own records: they never leave, lie beside personal models (0600) and go with them. What is
kept is of one round alone: whoever did not train in the round before begins with fresh ones, and so does a run whose
optimizer, or whose institution's records, are others by now.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from sovfed.clients.training.kept import KeptFile, kept_files
from sovfed.federation.files import private_directory, replacing
from sovfed.federation.plan import LocalPlan

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from sovfed.federation.messages import TrainRequest

log = logging.getLogger(__name__)
MOMENTS: Final = "moments"
ROUNDS: Final = 2  # kept of a run, so that one that is taken up after its last round finds those before it
MAX_RUNS: Final = 2  # whose moments are kept, the newest
_SAME: Final = (
    "optimizer",
    "momentum",
    "nesterov",
    "beta_1",
    "beta_2",
    "epsilon",
)  # of a plan, all that moments are of


class Moments:
    """The moments of one institution's runs, in the folder of its personal models.

    What cannot be written or read is done without.
    """

    def __init__(self, folder: Path, key: Callable[[TrainRequest], str], owner: Callable[[str], str]) -> None:
        """`key` and `owner` are what names of files there begin with: of a run, and of which of Flower's runs it is."""
        self._folder, self._key, self._owner = folder, key, owner

    def load(self, request: TrainRequest, about: tuple[Any, ...]) -> tuple[int, dict[str, torch.Tensor]] | None:
        """Steps taken and slots after the round before the request's; None if it begins with fresh ones.

        A resumed run is another to Flower: until it has kept some, it finds those of its predecessor. `about` is of the
        institution: records, device, arithmetic.
        """
        of_run = [file for file in self._files() if file.key == self._key(request)]
        before = [file for file in of_run if file.round == request.round - 1]
        own = [file for file in before if file.owner == self._owner(request.run)] or before
        if not own:
            if of_run:
                log.info("run %s: no part in round %d: fresh moments", request.keep, request.round - 1)
            return None
        return _read(max(own, key=lambda file: file.age).path, _digest(request, about))

    def save(self, request: TrainRequest, about: tuple[Any, ...], taken: int, slots: dict[str, torch.Tensor]) -> None:
        """Keep `slots` as those after the request's round, in the place of all but the round before."""
        from safetensors.torch import save_file

        owner = self._owner(request.run)
        metadata = {
            "run": request.keep, "flower_run": request.run, "task": request.task, "algorithm": request.optimizer,
            "round": str(request.round), "taken": str(taken), "about": _digest(request, about),
        }  # fmt: skip
        path = self._folder / f"{self._key(request)}.{owner}.{request.round}.{MOMENTS}.safetensors"
        try:
            private_directory(self._folder)
            with replacing(path) as draft:
                save_file({name: slot.contiguous() for name, slot in slots.items()}, draft, metadata=metadata)
        except OSError as error:  # a full disk costs the next round its moments
            log.warning("the optimizer's state was not kept: %s", error)
        kept = range(request.round - ROUNDS + 1, request.round + 1)
        for file in self._files():
            if (file.key, file.owner) == (self._key(request), owner) and file.round not in kept:
                file.path.unlink(missing_ok=True)
        self._forget()

    def end(self, run: str) -> None:
        """Forget those of Flower's run `run`, which is over, and of those that it took up again."""
        over = {file.key for file in self._files() if file.owner == self._owner(run)}
        for file in self._files():
            if file.key in over:
                file.path.unlink(missing_ok=True)

    def _forget(self) -> None:
        """Forget those of all but the newest runs."""
        newest: dict[tuple[str, str], None] = {}
        files = sorted(self._files(), key=lambda file: -file.age)
        for file in files:
            newest.setdefault((file.key, file.owner))
        for file in files:
            if (file.key, file.owner) not in list(newest)[:MAX_RUNS]:
                file.path.unlink(missing_ok=True)

    def _files(self) -> list[KeptFile]:
        return [file for file in kept_files(self._folder) if file.kind == MOMENTS]


def _digest(request: TrainRequest, about: tuple[Any, ...]) -> str:
    """SHA-256 (hex) of what moments must have in common to be of use to one another."""
    plan: LocalPlan = request.plan
    constants = [getattr(plan, name) for name in _SAME]
    return hashlib.sha256(json.dumps([constants, request.digest, request.seed, *about]).encode()).hexdigest()


def _read(path: Path, digest: str) -> tuple[int, dict[str, torch.Tensor]] | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            if metadata.get("about") != digest:
                log.info("%s: of other records, or another optimizer: fresh moments", path.name)
                return None
            return int(metadata["taken"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        log.warning("%s: no optimizer's state, fresh moments: %s", path, error)
        return None
