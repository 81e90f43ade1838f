"""`sovfed client join`: what is said before anybody else is asked."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from sovfed.clients.cli.join import join
from sovfed.clients.home.policy import load_policy
from sovfed.federation.certificates import create_root, to_pem
from sovfed.federation.errors import IdentityError
from sovfed.federation.wire.enrolment import Invitation


def joined(folder: Path, min_cohort: int, *words: str) -> str:
    """What `join` says until it sees that the root is another than the authority gave."""
    _, root = create_root("Ministry", datetime.now(UTC))
    expires = int(time.time()) + 3600
    invitation = Invitation("north", "127.0.0.1:9", to_pem(root).decode(), "0" * 64, expires, min_cohort)
    (folder / "north.invitation").write_text(invitation.to_json())
    arguments = [str(folder / "north.invitation"), "--home", str(folder / "home"), "--authority", "00", *words]
    result = CliRunner().invoke(join, arguments)
    assert isinstance(result.exception, IdentityError) and "the authority gave 00" in str(result.exception)
    return result.output


def test_runs_that_are_too_small_for_the_policy_are_told_when_joining(tmp_path: Path) -> None:
    told = joined(tmp_path, 4, "--data", "breast_cancer", "data.sites=4", "data.site=0")
    assert "runs have 4 institutions or more, policy.yaml answers those of 5 or more" in told
    assert load_policy(tmp_path / "home").secure_aggregation.min_cohort == 5  # the operator's to lower
    policy = tmp_path / "home" / "policy.yaml"
    text = policy.read_text()
    assert "secure_aggregation: {min_cohort: 4, colluders: 1}" in told
    policy.write_text(text.replace("min_cohort: 5", "min_cohort: 4").replace("colluders: 2", "colluders: 1"))
    assert load_policy(tmp_path / "home").secure_aggregation.min_cohort == 4
    assert "warning: the agency" not in joined(tmp_path, 4)


@pytest.mark.parametrize("min_cohort", [0, 1, 5, 9])
def test_nothing_is_said_where_the_policy_answers_or_could_not(tmp_path: Path, min_cohort: int) -> None:
    told = joined(tmp_path, min_cohort, "--data", "breast_cancer", "data.sites=4", "data.site=0")
    assert "warning: the agency" not in told
