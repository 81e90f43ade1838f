"""MLflow's own page over the agency's runs: on the loopback, behind a password, and without uploads of artefacts.

`python -m sovfed.server.runs.mlflow_page --home H --port P`. Every user of the machine can reach a loopback port, and
MLflow's API overwrites models and deletes runs. The password stands before the whole application rather than in
MLflow's `basic-auth` app, which guards the routes that it knows: a new version's new routes would be open.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Final

from sovfed.federation.host.leaving import leave
from sovfed.federation.host.logs import log_to_stderr
from sovfed.federation.host.processes import die_with_parent
from sovfed.federation.host.quiet import be_quiet
from sovfed.federation.wire.loopback import behind_password, ensure_secret

USER: Final = "agency"
PASSWORD: Final = Path("secrets") / "mlflow.password"


def settings(home: Path) -> dict[str, str]:
    """What MLflow's server reads from its environment; without `…SERVE_ARTIFACTS` it takes no upload."""
    from mlflow.server import constants

    return {
        constants.BACKEND_STORE_URI_ENV_VAR: f"sqlite:///{home / 'mlflow.db'}",
        constants.REGISTRY_STORE_URI_ENV_VAR: f"sqlite:///{home / 'mlflow.db'}",
        constants.ARTIFACT_ROOT_ENV_VAR: (home / "mlartifacts").as_uri(),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM."""
    die_with_parent()
    parser = argparse.ArgumentParser(description="MLflow's page behind a password")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args(arguments)
    os.umask(0o077)
    log_to_stderr()
    be_quiet(options.home)
    password = ensure_secret(options.home / PASSWORD)
    for name in [name for name in os.environ if "MLFLOW_" in name and name != "MLFLOW_DISABLE_TELEMETRY"]:
        del os.environ[name]  # what the operator's shell sets for a client of MLflow is not for this server

    from sovfed.server.runs.tracking import make_database

    make_database(options.home / "mlflow.db")
    os.environ.update(settings(options.home))
    import uvicorn
    from mlflow.server.fastapi_app import app

    uvicorn.run(
        behind_password(app, USER, password), host="127.0.0.1", port=options.port, access_log=False,
        server_header=False, log_config=None, ws="none",
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    leave(main)
