"""`sovfed bench secagg` in its smallest form: it measures whole rounds that come out right."""

from __future__ import annotations

from sovfed.simulations.benchmarks.secagg import measure


def test_a_small_setting_is_measured_against_flower() -> None:
    rows = {row.system: row for row in measure(4, 20_000, 1, repetitions=1)}
    assert set(rows) == {"flower", "b32", "b16"}
    for bits in (32, 16):
        row = rows[f"b{bits}"]
        assert 0 < row.after_training_ms < row.client_cpu_ms
        assert row.after_training_ratio > row.client_ratio > 1 and row.server_ratio > 1
        assert row.trips == 2 and 20_000 * bits / 8 < row.bytes_up < 20_000 * bits / 8 + 10_000
        assert row.max_error < {32: 1e-6, 16: 1e-2}[bits]
