"""What an institution's supervisor tells a monitor in its own house: processes, ledger, counts, certificate.

The loopback shows it to every user of the machine, so it holds nothing that `docs/what-leaves.md` does not let the
agency know, beside what the institution's own policy says: no run, no task, no figure of records, no time of computing.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily

from sovfed import __version__
from sovfed.clients.home.policy import load_policy
from sovfed.clients.ledger.book import replay
from sovfed.clients.ledger.entries import YEAR_S, History, merged
from sovfed.clients.ledger.file import ledgers, read_ledger, read_mark
from sovfed.clients.orders.book import OrderBook
from sovfed.clients.orders.purge import unpurged
from sovfed.clients.trainer.allowance import read_state
from sovfed.federation.errors import SovfedError
from sovfed.federation.host.status import read_status
from sovfed.federation.host.watch import process_metrics
from sovfed.federation.identity import load_certificate
from sovfed.federation.privacy.accounting import epsilon
from sovfed.federation.revocation import load_crl
from sovfed.federation.secagg.files import near_sums

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prometheus_client.core import Metric


def institution_metrics(home: Path) -> Iterator[Metric]:
    """All that there is to tell of the institution in `home`; what cannot be read is left out, but for a ledger."""
    yield from process_metrics(read_status(home), __version__)
    yield from _certificates(home)
    yield from _ledgers(home)
    with contextlib.suppress(SovfedError, OSError):
        waiting = len([*unpurged(OrderBook(home), load_policy(home).permits, time.time())])
        yield GaugeMetricFamily("sovfed_permits_unpurged", "Permits that have ended and are not purged here.", waiting)
    with contextlib.suppress(SovfedError):
        state = read_state(home)
        yield GaugeMetricFamily("sovfed_sums_today", "Sums without privacy answered today (UTC).", state.today.sums)
        yield GaugeMetricFamily("sovfed_failures", "Failures that runs were told of, until cleared.", state.failures)
        yield GaugeMetricFamily("sovfed_refuses_all", "1: too many failures; nothing is answered.", int(state.stopped))
        yield GaugeMetricFamily("sovfed_near_sums", "Newest sums that could be differenced.", len(near_sums(home)))


def _certificates(home: Path) -> Iterator[Metric]:
    with contextlib.suppress(SovfedError, OSError):
        ends = GaugeMetricFamily("sovfed_certificate_end_seconds", "When it ends, Unix time.", labels=["holder"])
        until = load_certificate(home / "identity" / "cert.pem").not_valid_after_utc
        ends.add_metric(["institution"], until.timestamp())
        yield ends
    with contextlib.suppress(SovfedError, OSError):
        next_update = load_crl(home / "identity" / "crl.pem").next_update_utc
        if next_update is not None:
            name = "sovfed_revocation_list_end_seconds"
            yield GaugeMetricFamily(
                name, "When the revocation list ends, and all trust with it.", next_update.timestamp()
            )


def _ledgers(home: Path) -> Iterator[Metric]:
    """ε of each population against its limits, and whether the ledger is whole and as new as what was signed of it."""
    labels = ["population", "limit"]
    used = GaugeMetricFamily("sovfed_ledger_epsilon", "ε spent and granted: for life, within 366 days.", labels=labels)
    limits = GaugeMetricFamily("sovfed_ledger_epsilon_limit", "ε that policy.yaml allows.", labels=labels)
    sound = GaugeMetricFamily("sovfed_ledger_sound", "0: it is damaged; nothing is paid.", labels=["ledger"])
    rolled_back = GaugeMetricFamily("sovfed_ledger_rolled_back", "1: it lacks what was signed.", labels=["ledger"])
    for name in ledgers(home):
        try:
            history, mark = replay(read_ledger(home, name)[0]), read_mark(home, name)
        except SovfedError:
            sound.add_metric([name], 0)
            continue
        sound.add_metric([name], 1)
        rolled_back.add_metric([name], int(mark is not None))
        for population in history.populations():
            _account(history, population, population or name, used, limits)
    yield from (used, limits, sound, rolled_back)


def _account(history: History, population: str, label: str, used: GaugeMetricFamily, limits: GaugeMetricFamily) -> None:
    budget = history.budgets.get(population)
    if budget is None:
        return
    reserved = history.reserved(population)
    for limit, after, most in (("life", 0.0, budget.epsilon), ("year", time.time() - YEAR_S, budget.annual_epsilon)):
        spent = history.spent(after=after, population=population)
        used.add_metric([label, limit], epsilon(merged([*spent, *reserved]), budget.delta))
        limits.add_metric([label, limit], most)
