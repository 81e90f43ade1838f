"""`sovfed client check-private`: what stands against a private run, and the override that mends it."""

from __future__ import annotations

from click.testing import CliRunner

from sovfed.clients.cli.institution import check_private


def test_batchnorm_is_refused_with_the_override_and_passes_with_it() -> None:
    no = CliRunner().invoke(check_private, ["digits_cnn"])
    assert (no.exit_code, no.output.startswith("digits_cnn: no\n")) == (3, True)
    assert no.output.count("Fix: use GroupNorm: task.normalisation=group") == 2  # both layers
    yes = CliRunner().invoke(check_private, ["digits_cnn", "--group-norm"])
    assert (yes.exit_code, yes.output) == (0, "digits_cnn: yes\n")
