"""An institution's declaration of what a run was trained on here, made of its study's description."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from sovfed.clients.home.folder import SETTINGS, load_config
from sovfed.clients.home.policy import load_policy
from sovfed.federation.config import REST
from sovfed.federation.content import ContentConfig
from sovfed.federation.errors import ConfigError
from sovfed.federation.evidence.store import record
from sovfed.federation.release.content import Declaration
from sovfed.federation.secagg.files import load_identity

if TYPE_CHECKING:
    from pathlib import Path

    from sovfed.federation.orders.order import RunOrder


class _Task(NamedTuple):
    """What a study is found by."""

    name: str
    digest: str


def declare(home: Path, order: RunOrder) -> Declaration:
    """What the run under `order` was trained on in `home`, signed and in its log.

    Raises ConfigError where client.yaml does not describe the study.
    """
    config, identity = load_config(home), load_identity(home / "identity")
    study = config.study_of(_Task(order.task, order.task_digest))
    content = config.content if study == REST else config.studies[study].content
    if not load_policy(home).declare_size:
        content = replace(content, size="")
    if content == ContentConfig():
        where = "content" if study == REST else f"studies.{study}.content"
        raise ConfigError(f"{home / SETTINGS}: {where} says nothing; write kind, population, period, language, basis")
    institution = identity.verify(identity.certificate).institution
    declaration = Declaration(institution, order.digest, order.run, int(time.time()), content).signed(identity)
    digest = hashlib.sha256(declaration.to_bytes()).hexdigest()
    record(home, "export", what="training content", name=order.run, sha256=digest)
    return declaration
