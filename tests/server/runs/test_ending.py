"""A run ends with what a person needs next."""

from __future__ import annotations

from pathlib import Path

from sovfed.server.runs.ending import ending

FOLDER = Path("/srv/runs/study 1")
PRIVATE = {"metrics": {}, "epsilon": 1.2345, "delta": 1e-6, "privacy": {"mechanism": "silo"}}


def test_a_run_tells_metrics_model_and_the_next_command() -> None:
    assert ending({"metrics": {"auc": 0.91234, "loss": 0.25}, "epsilon": None}, FOLDER, "study-1") == [
        "held-out metrics of all institutions: auc 0.912  loss 0.250",
        "model: /srv/runs/study 1/model.safetensors, card: /srv/runs/study 1/model.html",
        "next: sovfed model predict study-1 FILE.csv",
    ]


def test_the_next_command_finds_a_home_that_is_not_the_usual_one() -> None:
    option = " --home '/srv/the agency'"
    assert ending({"metrics": {}, "epsilon": None}, FOLDER, "study-1", option)[-1] == (
        "next: sovfed model predict study-1 FILE.csv --home '/srv/the agency'"
    )


def test_a_private_run_tells_what_it_promises_and_where_that_stands() -> None:
    assert ending(PRIVATE, FOLDER, str(FOLDER)) == [
        "differential privacy: silo, ε = 1.234 at δ = 1e-06 for every person; no metric left the institutions",
        "statement: /srv/runs/study 1/privacy.html",
        "model: /srv/runs/study 1/model.safetensors, card: /srv/runs/study 1/model.html",
        "next: sovfed model predict '/srv/runs/study 1' FILE.csv",
    ]
