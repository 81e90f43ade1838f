"""What a trainer asks of its institution's policy."""

from __future__ import annotations

import pytest

from sovfed.clients.home.policy import Policy
from sovfed.clients.trainer.rules import NO_RULES, Rules
from sovfed.federation.errors import PolicyError
from sovfed.federation.messages import ProfileRequest


def test_the_rules_of_a_policy_are_its_own() -> None:
    policy = Policy(least_spread=0.25, max_local_epochs=7, reproducible=True)
    rules = Rules.of(policy, 2**20)
    assert (rules.least_spread, rules.most_epochs, rules.reproducible) == (0.25, 7, True)
    assert (rules.check, rules.check_values) == (policy.check, policy.check_values)
    request = ProfileRequest(run="7", task="heart", digest="0" * 64)
    with pytest.raises(PolicyError, match="allowed_tasks"):
        rules.check(request)
    NO_RULES.check(request)
