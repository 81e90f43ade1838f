"""`sovfed task language`: what a decoder of these sizes asks for is told before anything of it is built."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from sovfed.cli import cli
from sovfed.federation.tasks.sizes import demands

pytest.importorskip("tokenizers")
TEXT = "この法律は、公布の日から施行する。" * 40


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    (tmp_path / "public.txt").write_text(TEXT, encoding="utf-8")
    out = tmp_path / "tokenizer.json"
    told = CliRunner().invoke(
        cli, ["task", "tokenizer", str(tmp_path / "public.txt"), "--size", "270", "--out", str(out)]
    )
    assert told.exit_code == 0, told.output
    return out


def written(tokenizer: Path, *sizes: str) -> tuple[int, str, Path]:
    where = tokenizer.with_name("law.yaml")
    told = CliRunner().invoke(
        cli, ["task", "language", "law", "--tokenizer", str(tokenizer), "--output", str(where), *sizes]
    )
    return told.exit_code, told.output + str(told.exception or ""), where


def test_it_tells_what_travels_and_what_memory_that_takes(tokenizer: Path) -> None:
    code, output, where = written(tokenizer, "--width", "1920", "--blocks", "21", "--heads", "16", "--context", "2048")
    assert code == 0 and where.is_file()
    assert "GB down" in output and "task check" in output  # of nearly 10⁹ values, for which no memory was taken


def test_what_is_longer_than_a_message_is_not_written(tokenizer: Path) -> None:
    code, output, where = written(tokenizer, "--width", "4096", "--blocks", "40", "--heads", "16")
    assert code != 0 and "at most 1000000000 travel" in output and not where.exists()


def test_demands_are_in_units_that_leave_two_digits() -> None:
    told = demands(1_638_400)
    assert "6.6 MB down" in told and "3.3 MB up" in told and told.count("20 MB") == 1
    assert demands(9).startswith("a round sends 36 bytes down")
