"""The agency's half, run by NVFlare's own Python: FedAvg by its NumPy recipe, submitted and waited for.

`submit.py FOLDER ADMIN NODES ROUNDS PARAMETERS TIMEOUT_S`: FOLDER takes the job and what `echo.py`, beside this file,
writes; ADMIN is the administrator's folder in the POC's workspace. What it prints last is the job's status.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from nvflare.app_common.np.recipes.fedavg import NumpyFedAvgRecipe
from nvflare.fuel.flare_api.flare_api import new_secure_session


def submit(folder: Path, admin: Path, nodes: int, rounds: int, parameters: int, timeout_s: float) -> str:
    """The status that the job ends with."""
    np.save(folder / "start.npy", np.zeros(parameters, np.float32))
    recipe = NumpyFedAvgRecipe(
        name="echo", initial_ckpt=str(folder / "start.npy"), min_clients=nodes, num_rounds=rounds,
        train_script=str(Path(__file__).with_name("echo.py")), train_args=str(folder / "times"),
    )  # fmt: skip
    recipe.export(str(folder / "job"))
    session = new_secure_session(admin.name, str(admin))
    try:
        job = session.submit_job(str(folder / "job" / "echo"))
        session.monitor_job(job, timeout=timeout_s)
        return str(session.get_job_meta(job)["status"])
    finally:
        session.close()


if __name__ == "__main__":
    place, admin, *counts = sys.argv[1:]
    sys.stdout.write(submit(Path(place), Path(admin), *map(int, counts)))
