"""`/health` and `/metrics` answer the loopback, and whoever asks wrongly or breaks ends nothing."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from sovfed.federation.host.status import ProcessStatus, Status
from sovfed.federation.host.watch import Watch, health_of, process_metrics

STATUS = Status(1, 0.0, (ProcessStatus("trainer", "ready", 7, 2, 100.0), ProcessStatus("page", "failed", None, 0, 1.0)))


def metrics() -> Iterator[Metric]:
    yield from process_metrics(STATUS, "1.2.3")
    hostile = GaugeMetricFamily("sovfed_institution_online", "x", labels=["institution"])
    hostile.add_metric(['h"\n\\} 1\nevil 2'], 1)
    yield hostile


@pytest.fixture
def watch() -> Iterator[Watch]:
    with Watch(0, lambda: health_of(STATUS), metrics) as running:
        yield running


def get(watch: Watch, path: str, **headers: str) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{watch.port}{path}", headers=headers, trust_env=False)


def test_metrics_are_what_prometheus_reads_and_a_hostile_name_stays_one_label(watch: Watch) -> None:
    families = {family.name: family for family in text_string_to_metric_families(get(watch, "/metrics").text)}
    samples = {sample.labels["process"]: sample.value for sample in families["sovfed_process_ready"].samples}
    assert samples == {"trainer": 1.0, "page": 0.0}
    (online,) = families["sovfed_institution_online"].samples
    assert online.labels == {"institution": 'h"\n\\} 1\nevil 2'}
    assert "evil" not in families


def test_health_is_200_only_when_all_that_must_run_is_ready(watch: Watch) -> None:
    answer = get(watch, "/health")
    assert (answer.status_code, answer.json()["processes"]) == (503, {"trainer": "ready", "page": "failed"})
    assert health_of(None) == (False, {"status": "not ready", "processes": {}})
    assert health_of(Status(1, 0.0, STATUS.processes[:1]))[0]


def test_a_page_elsewhere_that_sends_a_browser_to_this_machine_is_refused(watch: Watch) -> None:
    assert get(watch, "/metrics", Host="attacker.example").status_code == 403
    assert get(watch, "/metrics", Host=f"localhost:{watch.port}").status_code == 200


def test_metrics_that_cannot_be_collected_are_an_error_of_that_request_alone() -> None:
    def broken() -> Iterator[Metric]:
        yield from metrics()
        raise OSError("the disk is gone")

    with Watch(0, lambda: health_of(STATUS), broken) as watch:
        assert get(watch, "/metrics").status_code == 500
        assert get(watch, "/health").status_code == 503
        assert get(watch, "/anything").status_code == 404
        assert httpx.post(f"http://127.0.0.1:{watch.port}/metrics", trust_env=False).status_code == 501


def test_it_listens_on_the_loopback_only(watch: Watch) -> None:
    assert watch._server.server_address[0] == "127.0.0.1"
