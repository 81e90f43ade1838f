"""The privacy statement published beside a trained model: JSON for machines, and a page for a lawyer.

ε is always recomputed from the events, at the certificate's interval: a statement cannot claim what they do not give.
"""

from __future__ import annotations

import html
import json
import math
from dataclasses import MISSING, asdict, dataclass
from typing import Final

from sovfed.federation.errors import PrivacyError
from sovfed.federation.privacy.accounting import CERTIFICATE, accountant_version, epsilon
from sovfed.federation.privacy.events import Event
from sovfed.federation.schema import bind, bounded, choice
from sovfed.federation.text import json_object

VERSION: Final = 1
MAX_BYTES: Final = 1 << 26
UNIT: Final = "person"
ADJACENCY: Final = "add or remove one person"
MECHANISMS: Final = {
    "distributed": "Each institution added a share of the noise, and a cryptographic protocol (secure aggregation) "
    "showed the coordinator only the sum of all contributions, with the noise of all shares in it.",
    "silo": "Each institution added all of the noise to its own contribution before anything left it. Nobody else has "
    "to be trusted for the promise to hold.",
    "institution": "Each institution limited its whole contribution of a round in size and added a share of the noise, "
    "and a cryptographic protocol (secure aggregation) showed the coordinator only the sum of all contributions, with "
    "the noise of all shares in it, so that the promise protects even the institution as a whole, and with it each "
    "person in its records.",
}
_STEP: Final = (
    "Before that, each person's influence on a step was limited to {clip} (the clip), and, where the table shows a "
    "sampling rate below 1, persons were drawn at random for each step."
)
LIMITS: Final = {
    "distributed": _STEP,
    "silo": _STEP,
    "institution": "Before that, the contribution was cut to a length of at most {clip} (the clip), which no person "
    "can move by more than twice that length. All persons took part in every round.",
}
SHARED: Final = ("distributed", "institution")  # mechanisms in which an institution adds a share of the noise only


@dataclass(frozen=True)
class Promise:
    """What one institution promises the persons in its records: (epsilon, delta)-DP for all of `events` together."""

    events: tuple[Event, ...]
    institution: str = bounded(low=1, high=200)
    delta: float = bounded(low=1e-15, high=0.1)
    epsilon: float = bounded(low=0.0)

    def __post_init__(self) -> None:
        if not self.events:
            raise ValueError("a promise without events")


@dataclass(frozen=True)
class Statement:
    """All that is claimed for one model. `threshold` is h: the shares of noise that were there in every release."""

    promises: tuple[Promise, ...]
    model: str = bounded(low=1, high=500, doc="name and digest of the released model")
    run: str = bounded(low=1, high=200)
    date: str = bounded(low=10, high=10, doc="ISO date of issue")
    mechanism: str = choice(MISSING, MECHANISMS)
    clip: float = bounded(low=1e-30, high=1e30)
    cohort: int = bounded(low=1, high=100_000, doc="institutions that were to take part")
    threshold: int = bounded(low=1, high=100_000, doc="fewest honest institutions whose noise was in a release")
    colluders: int = bounded(low=0, high=100_000, doc="institutions that may pool what they know with the coordinator")
    epsilon: float = bounded(low=0.0)
    delta: float = bounded(low=1e-15, high=0.1)
    accountant: str = bounded(low=1, high=200)
    interval: float = bounded(low=1e-5, high=1e-1)
    seeded: bool = bounded(False, doc="noise from a user's seed: the run promises nothing")
    unit: str = choice(UNIT, [UNIT])
    adjacency: str = choice(ADJACENCY, [ADJACENCY])
    version: int = bounded(VERSION, VERSION, VERSION)

    def __post_init__(self) -> None:
        if self.threshold + self.colluders > self.cohort:
            raise ValueError(
                f"{self.threshold} honest and {self.colluders} colluding institutions are more than {self.cohort}"
            )
        if not self.promises:
            raise ValueError("it names no institution")
        names = [promise.institution for promise in self.promises]
        if len(set(names)) != len(names):
            raise ValueError("an institution is named twice")
        if (self.epsilon, self.delta) != _worst(self.promises):
            raise ValueError("the federation's epsilon and delta are not the largest of its institutions'")

    @property
    def private(self) -> bool:
        """Whether anything is promised."""
        return not self.seeded and math.isfinite(self.epsilon)


def promise(institution: str, events: tuple[Event, ...], delta: float, added_delta: float = 0.0) -> Promise:
    """The promise that `events` support at `delta`, of which `added_delta` is for what they leave out (`noise.py`).

    Raises PrivacyError if they support none.
    """
    supported = epsilon(events, delta - added_delta, CERTIFICATE)
    if not events or not math.isfinite(supported):
        raise PrivacyError(f"{institution}: its {len(events)} events support no finite ε at δ = {delta:g}")
    return Promise(events, institution, delta, supported)


def make_statement(
    *, model: str, run: str, date: str, mechanism: str, clip: float, cohort: int, threshold: int, colluders: int,
    promises: tuple[Promise, ...], seeded: bool = False,
) -> Statement:  # fmt: skip
    """The statement for a model; the federation's ε and δ are the largest of its institutions'.

    That is right for persons who are in the records of one institution only, and the page says so.
    Raises PrivacyError on a value out of range.
    """
    worst_epsilon, worst_delta = _worst(promises) if promises else (0.0, 0.1)
    values = {
        "model": model, "run": run, "date": date, "mechanism": mechanism, "clip": clip, "cohort": cohort,
        "threshold": threshold, "colluders": colluders, "promises": promises, "epsilon": worst_epsilon,
        "delta": worst_delta, "accountant": accountant_version(), "interval": CERTIFICATE, "seeded": seeded,
    }  # fmt: skip
    return bind(Statement, values, "statement", PrivacyError)


def to_json(statement: Statement) -> str:
    """The statement as JSON, keys sorted."""
    return json.dumps(asdict(statement), indent=2, sort_keys=True, allow_nan=False) + "\n"


def from_json(text: str) -> Statement:
    """The statement in `text`, checked: types, ranges, version, and every ε against its events.

    Raises PrivacyError, also where an ε is smaller than the events support.
    """
    values = json_object(text, "the privacy statement", PrivacyError, MAX_BYTES)
    statement = bind(Statement, values, "statement", PrivacyError)
    for claimed in statement.promises:
        supported = epsilon(claimed.events, claimed.delta, statement.interval)
        if claimed.epsilon < supported - 1e-6:
            raise PrivacyError(
                f"{claimed.institution} claims ε = {claimed.epsilon:.4f}; its events give {supported:.4f}"
            )
    return statement


def _worst(promises: tuple[Promise, ...]) -> tuple[float, float]:
    return max(each.epsilon for each in promises), max(each.delta for each in promises)


def detection_rate(epsilon: float, delta: float, false_alarms: float) -> float:
    """The best rate at which any test tells that a person took part, if its false alarms have this rate.

    Source: Kairouz, Oh and Viswanath 2015, arXiv:1311.0776, Theorem 2.1.
    """
    bound = min(math.exp(min(epsilon, 700)) * false_alarms + delta, 1 - math.exp(-epsilon) * (1 - delta - false_alarms))
    return min(1.0, max(bound, false_alarms))


def to_html(statement: Statement) -> str:
    """A page in plain language, self-contained; all text from outside is escaped."""
    rows = "".join(
        f"<tr><td>{html.escape(each.institution)}</td><td>{_up(each.epsilon)}</td><td>{each.delta:g}</td>"
        f"<td>{sum(event.count for event in each.events)}</td><td>{_events(each.events)}</td></tr>"
        for each in statement.promises
    )
    return _PAGE.format(
        model=html.escape(statement.model), run=html.escape(statement.run), date=html.escape(statement.date),
        promised=_promised(statement), how=MECHANISMS[statement.mechanism], mechanism=statement.mechanism, rows=rows,
        limit=LIMITS[statement.mechanism].format(clip=f"{statement.clip:g}"), trust=_trust(statement),
        shares=f"least number of honest shares of noise: {statement.threshold}"
        if statement.mechanism in SHARED else "each adds all of the noise",
        cohort=statement.cohort,
        accountant=html.escape(statement.accountant), interval=f"{statement.interval:g}",
        epsilon=_up(statement.epsilon), delta=f"{statement.delta:g}",
    )  # fmt: skip


def _promised(statement: Statement) -> str:
    if not statement.private:
        return (
            "<p class=warning><strong>This model is not private.</strong> Its noise came from a seed that a person "
            "chose, so that whoever knows the seed can take the noise away. No promise is made, and the figures below "
            "are for testing only.</p>"
        )
    factor = math.exp(min(statement.epsilon, 700))
    even, detected = (factor + statement.delta) / (1 + factor), detection_rate(statement.epsilon, statement.delta, 0.01)
    return (
        f"<p>Whoever sees the model learns almost the same as if any one person's records had never been used: using "
        f"them multiplies the probability of any outcome by at most {_up(factor)} (ε = {_up(statement.epsilon)}), give "
        f"or take {statement.delta:g} (δ).</p>"
        f"<p>In figures, and for the cleverest observer, who knows everything about everybody else: asked whether a "
        f"person took part, where a coin toss would be right in 50 % of the cases, the observer is right in at most "
        f"{_percent(even)}. A test that wrongly accuses 1 % of those who did not take part finds at most "
        f"{_percent(detected)} of those who did.</p>"
    )


def _trust(statement: Statement) -> str:
    if statement.mechanism not in SHARED:
        return "The promise needs no trust in the coordinator or in other institutions, only in the person's own."
    return (
        f"The promise holds as long as at least {statement.threshold} of the {statement.cohort} institutions add their "
        f"noise as agreed; up to {statement.colluders} of the others may work together with the coordinator against "
        f"it. No sum with fewer than {statement.threshold} honest contributions was ever opened."
    )


def _events(events: tuple[Event, ...]) -> str:
    return "<br>".join(
        f"{event.count} × noise {event.noise_multiplier:g} at sampling rate {event.sampling_rate:g}" for event in events
    )


def _up(value: float) -> str:
    """Two decimals, rounded up: a page must not promise more than the figures do."""
    return f"{math.ceil(value * 100) / 100:.2f}" if value < 1e6 else f"{value:.2g}"


def _percent(value: float) -> str:
    return f"{min(100.0, math.ceil(value * 1000) / 10):.1f} %"


_PAGE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Privacy statement: {model}</title>
<style>
body {{ font: 16px/1.5 serif; max-width: 46em; margin: 2em auto; padding: 0 1em }}
table {{ border-collapse: collapse }} td, th {{ border: 1px solid #999; padding: .3em .6em; text-align: left }}
.warning {{ border: 3px solid #b00; padding: 1em }}
</style>
<h1>Privacy statement</h1>
<p>Model: {model}<br>Run: {run}<br>Date: {date}</p>
<h2>What is promised</h2>
{promised}
<p>The promise is made to each <em>person</em>, with all records that one institution holds of them, whether or not
they took part. It cannot be weakened later by new computers, new data or further analysis of the model.</p>
<h2>How it is kept</h2>
<p>{how} {limit}</p>
<p>{trust}</p>
<h2>What is not promised</h2>
<ul>
<li>That nothing can be concluded <em>about</em> a person. If the model shows that smoking causes disease, it does
so for those who did not take part, too.</li>
<li>Protection of a group. For k persons who belong together (a family), ε grows up to k-fold.</li>
<li>This figure for a person in the records of several institutions of this run: the ε of those institutions may add
up.</li>
<li>Protection from other models and releases made of the same records. Each institution's ledger adds up those with
differential privacy and holds the limit over the years; for those without there is no bound, and the ledger names them.
This page covers this run.</li>
<li>Protection of the records where they lie, from thieves or from staff of the institution itself.</li>
<li>That the model is right, or fair.</li>
</ul>
<h2>Figures</h2>
<p>Federation: ε = {epsilon}, δ = {delta} (the largest of its institutions; each person is taken to be in one of
them). Mechanism: {mechanism}. Unit: one person. Neighbouring data: one person added or removed. Institutions:
{cohort}; {shares}. Accountant: {accountant}, interval {interval},
pessimistic.</p>
<table>
<tr><th>Institution</th><th>ε</th><th>δ</th><th>Releases</th><th>Events</th></tr>
{rows}
</table>
</html>
"""
