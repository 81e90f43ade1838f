"""A statement claims what its events support, survives JSON, and is readable and safe as a page."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from sovfed.federation.errors import PrivacyError
from sovfed.federation.privacy.accounting import CERTIFICATE, epsilon
from sovfed.federation.privacy.events import Event
from sovfed.federation.privacy.statement import (
    Promise,
    Statement,
    detection_rate,
    from_json,
    make_statement,
    promise,
    to_html,
    to_json,
)

EVENTS = (Event(3.0, 0.1, 200), Event(20.0, 1.0, 1))


def made(**changes: Any) -> Statement:
    values: dict[str, Any] = {
        "model": "digits sha256:ab", "run": "run-7", "date": "2026-11-24", "mechanism": "distributed", "clip": 1.0,
        "cohort": 8, "threshold": 6, "colluders": 1,
        "promises": (promise("hospital <1>", EVENTS, 1e-4), promise("hospital-2", EVENTS[:1], 1e-5)),
    }  # fmt: skip
    return make_statement(**(values | changes))


def test_epsilon_comes_from_the_events_at_the_certificates_interval() -> None:
    found = made()
    assert found.promises[0].epsilon == epsilon(EVENTS, 1e-4, CERTIFICATE)
    assert (found.epsilon, found.delta) == (max(each.epsilon for each in found.promises), 1e-4)
    assert found.accountant.startswith("PLD, dp-accounting")
    assert found.private


def test_json_and_back() -> None:
    found = made()
    assert from_json(to_json(found)) == found
    assert json.loads(to_json(found))["adjacency"] == "add or remove one person"


def tampered(**changes: Any) -> str:
    return json.dumps(json.loads(to_json(made())) | changes)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no json", "not JSON"),
        ("[]", "not a JSON object"),
        (tampered(version=2), "version"),
        (tampered(unit="record"), "unit"),
        (tampered(mechanism="none"), "mechanism"),
        (tampered(epsilon=0.5), "not the largest"),
        (tampered(threshold=8), "more than 8"),
        (tampered(promises=[]), "no institution"),
        (tampered(colour="red"), "unknown key"),
    ],
)
def test_statements_that_do_not_hold_are_refused(text: str, reason: str) -> None:
    with pytest.raises(PrivacyError, match=reason):
        from_json(text)


def test_an_epsilon_smaller_than_its_events_give_is_refused() -> None:
    values = json.loads(to_json(made()))
    for each in values["promises"]:
        each["epsilon"] = 0.5
    with pytest.raises(PrivacyError, match="its events give"):
        from_json(json.dumps(values | {"epsilon": 0.5}))


def test_an_institution_named_twice_is_refused() -> None:
    twice = promise("hospital-1", EVENTS, 1e-4)
    with pytest.raises(PrivacyError, match="twice"):
        made(promises=(twice, twice))


def test_no_promises_and_no_events_are_refused() -> None:
    with pytest.raises(PrivacyError, match="no institution"):
        made(promises=())
    with pytest.raises(PrivacyError, match="no finite"):
        promise("hospital-1", (), 1e-5)
    with pytest.raises(PrivacyError, match="no finite"):
        promise("hospital-1", (Event(0.001, 1.0, 1),), 1e-5)
    with pytest.raises(ValueError, match="without events"):
        Promise((), "hospital-1", 1e-5, 0.0)


@pytest.mark.parametrize(
    ("epsilon", "delta", "false_alarms", "expected"),
    [
        (0.0, 0.0, 0.05, 0.05),
        (math.log(2), 0.0, 0.1, 0.2),
        (math.log(4), 0.01, 0.1, 0.41),
        (math.log(4), 0.0, 0.5, 0.875),
    ],
)
def test_detection_rate_by_hand(epsilon: float, delta: float, false_alarms: float, expected: float) -> None:
    assert detection_rate(epsilon, delta, false_alarms) == pytest.approx(expected)


@pytest.mark.parametrize("z", [0.5, 1.0, 3.0])
def test_detection_rate_covers_the_best_test_against_a_gaussian(z: float) -> None:
    """Neyman-Pearson: at false alarms α a Gaussian release of multiplier z is detected with Φ(1/z + Φ⁻¹(α))."""
    from scipy.stats import norm

    found = epsilon([Event(z, 1.0, 1)], 1e-5, CERTIFICATE)
    assert norm.cdf(1 / z + norm.ppf(0.01)) <= detection_rate(found, 1e-5, 0.01)


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("href", "src")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(statement: Statement) -> Page:
    page = Page()
    page.feed(to_html(statement))
    page.close()
    assert (page.open, page.links) == ([], [])  # well formed, and it loads nothing
    page.text = re.sub(r"\s+", " ", page.text)
    return page


@pytest.mark.parametrize("mechanism", ["distributed", "silo", "institution"])
def test_page_is_whole_and_escapes_names(mechanism: str) -> None:
    page = read(made(mechanism=mechanism))
    assert "hospital <1>" in page.text and "hospital <1>" not in to_html(made(mechanism=mechanism))
    for part in ("What is promised", "What is not promised", "200 × noise 3 at sampling rate 0.1", "one person added"):
        assert part in page.text


CLAIMS = {  # what the page says → of which mechanisms it is true
    "Each institution added a share of the noise": ("distributed",),
    "limited its whole contribution of a round in size and added a share of the noise": ("institution",),
    "Each institution added all of the noise to its own contribution before anything left it": ("silo",),
    "secure aggregation) showed the coordinator only the sum": ("distributed", "institution"),
    "Nobody else has to be trusted for the promise to hold": ("silo",),
    "needs no trust in the coordinator or in other institutions, only in the person's own": ("silo",),
    "as long as at least 6 of the 8 institutions add their noise as agreed": ("distributed", "institution"),
    "up to 1 of the others may work together with the coordinator": ("distributed", "institution"),
    "No sum with fewer than 6 honest contributions was ever opened": ("distributed", "institution"),
    "least number of honest shares of noise: 6": ("distributed", "institution"),
    "each adds all of the noise": ("silo",),
    "protects even the institution as a whole": ("institution",),
    "each person's influence on a step was limited to 1.5 (the clip)": ("distributed", "silo"),
    "persons were drawn at random": ("distributed", "silo"),
    "cut to a length of at most 1.5 (the clip), which no person can move by more than twice": ("institution",),
    "All persons took part in every round": ("institution",),
    "made to each person, with all records that one institution holds of them": ("distributed", "silo", "institution"),
    "Protection of a group": ("distributed", "silo", "institution"),
    "the ε of those institutions may add up": ("distributed", "silo", "institution"),
    "Neighbouring data: one person added or removed": ("distributed", "silo", "institution"),
}


@pytest.mark.parametrize("mechanism", ["distributed", "silo", "institution"])
@pytest.mark.parametrize("claim", CLAIMS)
def test_the_page_claims_of_a_mechanism_what_is_true_of_it(mechanism: str, claim: str) -> None:
    assert (claim in read(made(mechanism=mechanism, clip=1.5)).text) == (mechanism in CLAIMS[claim])


@pytest.mark.parametrize("mechanism", ["distributed", "silo", "institution"])
def test_every_sentence_on_how_the_promise_is_kept_is_among_the_tested_claims(mechanism: str) -> None:
    text = read(made(mechanism=mechanism, clip=1.5)).text
    section = text.partition("How it is kept")[2].partition("What is not promised")[0]
    for sentence in re.split(r"(?<=[a-z)])\. ", section.strip()):
        assert any(claim in sentence for claim in CLAIMS), sentence


def test_page_rounds_what_it_promises_upwards() -> None:
    one = promise("hospital-1", (Event(3.0, 0.1, 200),), 1e-4)
    text = read(made(promises=(one,))).text
    shown = float(re.findall(r"ε = ([\d.]+)", text)[0])
    assert one.epsilon <= shown < one.epsilon + 0.01
    factor = float(re.findall(r"by at most ([\d.]+)", text)[0])
    assert math.exp(one.epsilon) <= factor < math.exp(one.epsilon) + 0.01
    right = float(re.findall(r"right in at most ([\d.]+) %", text)[0]) / 100
    assert (math.exp(one.epsilon) + 1e-4) / (1 + math.exp(one.epsilon)) <= right


def test_a_seeded_run_promises_nothing() -> None:
    found = made(seeded=True)
    assert not found.private and not replace(found, seeded=True).private
    text = read(found).text
    assert "This model is not private." in text and "almost the same" not in text
