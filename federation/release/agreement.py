"""What a release states of its model is what its files and the agency's log say of it."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.errors import EvidenceError
from sovfed.federation.evidence.entries import listed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sovfed.federation.release.lineage import Lineage

MODEL: Final = "model/model.safetensors"
FACTS: Final = "model/model.json"
BILL: Final = "mlbom.cdx.json"
PROMISE: Final = "privacy.json"
HEAD_BYTES: Final = 8  # of a safetensors file: the length of the JSON that follows
MAX_HEAD_BYTES: Final = 100_000_000  # what safetensors allows
CLOSE: Final = 1e-6  # of an ε that two computed


def require_agreement(files: Mapping[str, bytes], predicate: Mapping[str, Any], log: Lineage, digest: str) -> None:
    """Raise EvidenceError unless statement, log and files say the same of the model with that SHA-256."""
    _ = log.unbroken  # raises where an entry is left out
    _same_model(predicate, log, digest)
    _same_start(files, predicate, log)
    _same_run(predicate, log)
    _same_institutions(predicate, log)
    _same_unlearning(predicate, log)
    _same_files(files, predicate, digest)
    require_promise(files, predicate)


def _same_model(predicate: Mapping[str, Any], log: Lineage, digest: str) -> None:
    models, released = log.of_kind("model"), log.of_kind("release")
    if not models or models[-1]["sha256"] != digest or predicate["model"]["sha256"] != digest:
        raise EvidenceError("the model is not the one that the log says the run ended with")
    if not released or released[-1]["sha256"] != digest:
        raise EvidenceError("the log does not say that this model was released")
    if models[-1]["of_round"] != predicate["model"]["round"] or models[-1]["rounds"] != predicate["run"]["rounds"]:
        raise EvidenceError("the log names another round of the model than the statement, or another number of them")


def _same_start(files: Mapping[str, bytes], predicate: Mapping[str, Any], log: Lineage) -> None:
    """Raise EvidenceError where log or card know of another model than the statement that the run began with."""
    stated = predicate.get("started_from", "")
    facts, logged = _read(files[FACTS], FACTS)["run"], log.of_kind("model")[-1]
    if any(of.get("started_from", "") != stated for of in (facts, logged)):
        raise EvidenceError("the log or the model's own facts name another model that the run began with, or none")


def _same_run(predicate: Mapping[str, Any], log: Lineage) -> None:
    run = predicate["run"]
    if any(values["name"] != run["name"] for values in log.entries):
        raise EvidenceError("the log's entries are of another run")
    begun = [values for values in log.of_kind("run") if values["status"] == "running"]
    if not begun or begun[-1]["config"] != run["config"]:
        raise EvidenceError("the log names another configuration than the statement")
    if begun[-1]["task"] != run["task"]["name"]:
        raise EvidenceError("the log names another task than the statement")
    if begun[-1]["privacy"] != (predicate["privacy"] or {"mechanism": ""})["mechanism"]:
        raise EvidenceError("the log names another privacy mechanism than the statement")
    if begun[-1]["secure_aggregation"] is not bool(predicate["secure_aggregation"]):
        raise EvidenceError("the log says otherwise than the statement whether sums were masked")


def _same_institutions(predicate: Mapping[str, Any], log: Lineage) -> None:
    named = predicate["institutions"]
    if log.of_kind("model")[-1]["institutions"] != named:
        raise EvidenceError("the log names other institutions than the statement")
    rounds = {values["round"]: values["participants"] for values in log.of_kind("round")}  # as it was repeated last
    if not named or not any(rounds.values()):
        raise EvidenceError("the log has no round in which an institution took part")
    if isinstance(named, list):
        others = {name for names in rounds.values() for name in names if isinstance(names, list)} - set(named)
        if others:
            raise EvidenceError(f"the log says that {', '.join(sorted(others))} took part, and the statement does not")


def _same_unlearning(predicate: Mapping[str, Any], log: Lineage) -> None:
    """Raise EvidenceError where the log has another story of who was left out, or a round with one of them."""
    logged, stated = log.of_kind("unlearning"), predicate.get("unlearning")
    if bool(logged) != bool(stated):
        raise EvidenceError("the log says otherwise than the statement whether the run was made anew without somebody")
    if stated is None:
        return
    if any(logged[-1][name] != value for name, value in stated.items()):
        raise EvidenceError("the log says otherwise than the statement what was made anew, and without whom")
    gone = set(stated["withdrawn"]) if isinstance(stated["withdrawn"], list) else set()
    took_part = {name for values in log.of_kind("round") for name in values["participants"]}
    if again := sorted(gone & (took_part | set(predicate["institutions"]))):
        raise EvidenceError(f"{', '.join(again)} had withdrawn, and took part again")


def require_audits_logged(predicate: Mapping[str, Any], log: Lineage) -> tuple[str, ...]:
    """What the stated audits found, once the log has each of them of this model, and those that contradicted it before.

    Raises EvidenceError.
    """
    logged = [values for values in log.of_kind("audit") if values["model"] == predicate["model"]["sha256"]]
    if any(audit not in logged for audit in predicate["audits"]):
        raise EvidenceError("the statement names an audit of the model that the log does not have")
    failed = [audit for audit in logged if not audit["passed"] and audit not in predicate["audits"]]
    return tuple(
        f"audit {audit['audit']}{' (quick)' if audit['quick'] else ''} at the run's parameters, on public records: "
        f"{'passed' if audit['passed'] else 'CONTRADICTED'}, {audit['figure']:g}; {audit['power']}"
        for audit in (*predicate["audits"], *failed)
    )


def _same_files(files: Mapping[str, bytes], predicate: Mapping[str, Any], digest: str) -> None:
    facts, task = _read(files[FACTS], FACTS), predicate["run"]["task"]
    if facts["run"]["name"] != predicate["run"]["name"][:200] or any(facts["task"][key] != task[key] for key in task):
        raise EvidenceError(f"{FACTS}: of another run or task than the statement")
    component = _read(files[BILL], BILL)["metadata"]["component"]
    if [entry["content"] for entry in component["hashes"]] != [digest] or component["name"] != task["name"]:
        raise EvidenceError(f"{BILL}: of another model")
    if facts.pop("model_sha256") != digest or facts != _head(files[MODEL]):
        raise EvidenceError(f"{FACTS}: says otherwise than the head of {MODEL}, or is of another one")
    told, stated = facts["run"]["privacy"], predicate["privacy"]
    names = ("mechanism", "epsilon", "delta")
    if (told is None) != (stated is None) or (told and (told["seeded"] or any(told[n] != stated[n] for n in names))):
        raise EvidenceError(f"{FACTS}: promises other privacy than the statement")
    stated_of = predicate["model"]["parameters"], predicate["run"]["sovfed"], predicate["run"]["strategy"]
    if (facts["task"]["parameters"], facts["sovfed"], facts["run"]["strategy"]) != stated_of:
        raise EvidenceError(f"{FACTS}: of another size, version or strategy than the statement")
    run, metrics = facts["run"], predicate["evaluation"]["metrics"]
    if (listed(run["institutions"]), run["metrics"]) != (predicate["institutions"], metrics):
        raise EvidenceError(f"{FACTS}: names other institutions or metrics than the statement")


def require_promise(files: Mapping[str, bytes], predicate: Mapping[str, Any]) -> None:
    """Raise EvidenceError unless the privacy statement is there where privacy is stated, and promises the same."""
    stated = predicate["privacy"]
    if (PROMISE in files) != (stated is not None):
        raise EvidenceError(f"{PROMISE}: there without a promise in the statement, or missing beside one")
    if stated is None:
        return
    promise = _read(files[PROMISE], PROMISE)
    names = ("mechanism", "delta", "clip", "unit", "adjacency", "accountant")
    same = all(promise[name] == stated[name] for name in names) and promise["run"] == predicate["run"]["name"]
    if not same or promise["seeded"] or not math.isclose(promise["epsilon"], stated["epsilon"], rel_tol=CLOSE):
        raise EvidenceError(f"{PROMISE}: promises otherwise than the statement")


def _head(model: bytes) -> Any:
    """What the head of a safetensors file says of its model: whoever has that file alone reads this."""
    end = HEAD_BYTES + int.from_bytes(model[:HEAD_BYTES], "little")
    if end > MAX_HEAD_BYTES:
        raise EvidenceError(f"{MODEL}: a head of {end} bytes, at most {MAX_HEAD_BYTES} are read")
    return _read(_read(model[HEAD_BYTES:end], MODEL)["__metadata__"]["sovfed"], MODEL)


def _read(text: bytes | str, name: str) -> Any:
    """The JSON `text` of file `name`. Raises EvidenceError where a name comes twice: readers differ on which holds."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            raise EvidenceError(f"{name}: a name comes twice in it")
        return values

    return json.loads(text, object_pairs_hook=once)
