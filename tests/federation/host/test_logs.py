"""What a child says becomes lines that nobody forges, floods or steers a terminal with."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from sovfed.federation.host.child import Child, Process
from sovfed.federation.host.logs import (
    LOG_BYTES,
    LOG_FILES,
    MOST,
    REPEATS,
    TOTAL,
    WINDOW_S,
    JsonRecord,
    Log,
    OneLine,
    Thinning,
)
from sovfed.federation.host.quiet import quiet_environment

FORGED = "x\nINFO sovfed.clients.lane: run 7, round 1: 0 records"


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def lines(path: Path) -> list[str]:
    return [line.partition("Z ")[2] for line in text(path).splitlines()]


def test_a_record_is_one_line_and_a_traceback_stands_indented() -> None:
    form = OneLine("%(levelname)s %(name)s: %(message)s")
    record = logging.makeLogRecord({"name": "a", "levelname": "INFO", "msg": "refused run %s", "args": (FORGED,)})
    assert form.format(record) == f"INFO a: refused run {FORGED}".replace("\n", "\\n")
    with pytest.raises(ValueError, match="invalid literal") as caught:
        int(FORGED)
    record.exc_info = (caught.type, caught.value, caught.tb)
    first, *rest = form.format(record).split("\n")
    assert first.startswith("INFO a: refused")
    assert rest and all(line.startswith("    ") for line in rest)


def test_a_long_message_is_cut() -> None:
    record = logging.makeLogRecord({"name": "a", "levelname": "INFO", "msg": "x" * 1_000_000})
    assert OneLine("%(message)s").format(record) == "x" * 4_000 + "… (996000 characters more)"


def run_child(folder: Path, code: str) -> Path:
    """The log of a child that runs `code`, as the supervisor copies it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    child = Child(Process("child", [sys.executable, "-c", code], quiet_environment()), folder)
    child.spawn()
    assert child.popen is not None and child._copier is not None
    child.popen.wait(60)
    child._copier.join(60)
    child.log.close()
    return folder / "child.log"


def test_what_a_child_writes_steers_no_terminal(tmp_path: Path) -> None:
    code = r"print('\x1b]0;title\x07 \x1b[2A over \r there \u202e turned \x85 and \u2028 on\tkept')"
    (line,) = lines(run_child(tmp_path, code))
    assert line == r"\x1b]0;title\x07 \x1b[2A over \r there \u202e turned \x85 and \u2028 on" + "\tkept"


def test_the_rest_of_a_long_line_is_no_line_of_its_own(tmp_path: Path) -> None:
    found = lines(run_child(tmp_path, "print('x' * 65536 + 'INFO sovfed.clients.lane: run 7'); print('INFO next')"))
    assert [line[:40] for line in found] == ["x" * 40, "    … INFO sovfed.clients.lane: run 7", "INFO next"]


def test_a_child_of_ours_cannot_be_made_to_forge_a_line(tmp_path: Path) -> None:
    code = (
        "import logging; from sovfed.federation.host.logs import log_to_stderr; log_to_stderr()\n"
        f"log = logging.getLogger('sovfed.clients.trainer.service'); name = {FORGED!r}\n"
        "log.info('refused run %s', name)\n"
        "try: raise ValueError(name)\n"
        "except ValueError: log.exception('refused')\n"
        "logging.getLogger('httpx').info('HTTP Request')\n"
        "from flwr.common.logger import log as flower\n"
        "flower(20, 'from %s', name)\n"
        "flower(10, 'HTTP')\n"
        "raise RuntimeError(name)\n"
    )
    found = lines(run_child(tmp_path, code))
    levelled = [line for line in found if line.startswith(("INFO", "WARNING", "ERROR", "CRITICAL"))]
    assert [line.split(":")[0] for line in levelled] == [
        "INFO sovfed.clients.trainer.service", "ERROR sovfed.clients.trainer.service", "INFO flwr", "CRITICAL sovfed",
    ]  # fmt: skip
    assert not any(line.startswith("Traceback") for line in found) and "HTTP" not in "".join(found)


def test_a_child_s_files_are_its_owner_s_whatever_the_umask(tmp_path: Path) -> None:
    run_child(tmp_path, f"open({str(tmp_path / 'made')!r}, 'w').write('x')")
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "child.log": 0o600,
        "made": 0o600,
    }


def test_a_rotated_log_stays_private(tmp_path: Path) -> None:
    code = (
        "import os; os.umask(0)\nfrom sovfed.federation.host.logs import Log\nfrom pathlib import Path\nimport sys\n"
        + ("log = Log(Path(sys.argv[1])); log._handler.maxBytes = 1000\nfor n in range(100): log.write(f'line {n}')\n")
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.log")], check=True, timeout=60)
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert len(list(tmp_path.iterdir())) > 2 and modes == {0o600}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_repeated_refusals_are_counted_and_what_came_before_stays(tmp_path: Path) -> None:
    """11,479 refusals in two minutes, each a traceback, turned 20 MB over."""
    clock = Clock()
    log = Log(tmp_path / "a.log", clock)
    log.write("INFO sovfed.clients.trainer.service: run 7, round 1: 300 records, 0.1 s")
    block = [
        "ERROR sovfed.clients.trainer.service: refused a TrainRequest of run 7",
        *(f"    File line {n}" for n in range(20)),
    ]
    for _ in range(11_479):
        clock.now += 120 / 11_479
        for line in block:
            log.write(line)
    log.close()
    found = lines(tmp_path / "a.log")
    assert found[0] == "INFO sovfed.clients.trainer.service: run 7, round 1: 300 records, 0.1 s"
    assert found.count(block[0]) <= 3 * REPEATS
    tallies = [int(line.split()[2]) for line in found if line.startswith("… repeated") and block[0] in line]
    assert sum(tallies) + found.count(block[0]) == 11_479
    assert (tmp_path / "a.log").stat().st_size < 100_000 and not (tmp_path / "a.log.1").exists()


def test_a_flood_of_ever_new_lines_is_bounded_in_rate_and_told() -> None:
    thinning, now, size, told = Thinning(), 0.0, 0, False
    evidence = 0
    for number in range(120_000):  # two minutes of a thousand lines a second, no two alike
        now += 0.001
        found = thinning.admit(f"WARNING sovfed.clients.trainer.masking: refused {number:09d}{'y' * 400}", now)
        size += sum(map(len, found))
        told |= any("left out" in line for line in found)
        if number % 10_000 == 0:
            other = f"INFO sovfed.clients.trainer.service: run 7, round {number}: 300 records"
            evidence += other in thinning.admit(other, now)
    assert size < 2_000_000 and told  # of one kind: 1 MB at once, 1 kB/s
    assert evidence == 12  # another kind of line has its own room


def test_whatever_the_lines_are_turning_the_log_over_takes_hours() -> None:
    thinning, now, size = Thinning(), 0.0, 0
    for number in range(60_000):
        now += 0.06  # an hour
        found = thinning.admit(f"{chr(97 + number % 26)}{chr(97 + number // 26 % 26)}{number} {'z' * 3000}", now)
        size += sum(map(len, found))
    assert size < (TOTAL[0] + 3_600 * TOTAL[1]) * 1.2 < LOG_BYTES * LOG_FILES


def test_what_is_kept_in_mind_is_bounded() -> None:
    thinning = Thinning()
    for number in range(3 * MOST):
        thinning.admit(f"{number}", 0.0)
    assert len(thinning._seen) <= MOST and len(thinning._kinds) <= MOST


def test_a_tally_is_told_though_nothing_follows(tmp_path: Path) -> None:
    clock = Clock()
    log = Log(tmp_path / "a.log", clock)
    for _ in range(9):
        log.write("the same")
    assert lines(tmp_path / "a.log") == ["the same"] * REPEATS
    clock.now += WINDOW_S
    log.tick()
    assert lines(tmp_path / "a.log")[-1] == "… repeated 4 times: the same"
    log.close()


@pytest.mark.parametrize("calm", [1, 50])
def test_a_calm_process_loses_nothing(tmp_path: Path, calm: int) -> None:
    clock = Clock()
    log = Log(tmp_path / "a.log", clock)
    for number in range(1_000):
        clock.now += 1 / calm
        log.write(f"INFO sovfed.coordinator: round {number}/1000: 4 institutions")
    log.close()
    assert len(lines(tmp_path / "a.log")) == 1_000


def test_a_log_that_cannot_be_written_is_one_warning_and_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Seen on a full disk: a traceback of twenty lines for each line that was lost."""
    path = tmp_path / "worker.log"
    log = Log(path)
    path.unlink()
    path.mkdir()  # nothing can be opened there
    for number in range(30):
        log.write(f"line {number}")
    path.rmdir()
    log.write("there is room again")
    log.close()
    assert lines(path) == ["there is room again", "… 30 lines could not be written"]
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "worker.log cannot be written" in said


def test_a_log_of_json_has_an_object_a_line_whatever_a_child_says(tmp_path: Path) -> None:
    log = Log(tmp_path / "trainer.log", form="json")
    log.write('INFO sovfed.trainer: "quoted" \x1b[2J')
    log.write("    Traceback, no record")
    log.write('{"level": "CRITICAL", "message": "forged"}')
    log.close()
    first, second, third = map(json.loads, (tmp_path / "trainer.log").read_text().splitlines())
    assert (first["process"], first["level"], first["logger"]) == ("trainer", "INFO", "sovfed.trainer")
    assert first["message"] == '"quoted" \\x1b[2J'
    assert "level" not in second and second["message"] == "    Traceback, no record"
    assert "level" not in third


def test_a_coordinators_json_is_an_object_a_record_with_its_traceback() -> None:
    try:
        int("a\nforged line")
    except ValueError:
        record = logging.getLogger("sovfed.x").makeRecord(
            "sovfed.x", logging.ERROR, __file__, 1, "no %s", ("use",), sys.exc_info()
        )
    told = json.loads(JsonRecord().format(record))
    assert (told["level"], told["logger"], told["message"]) == ("ERROR", "sovfed.x", "no use")
    assert "forged line" in told["traceback"] and "\n" not in JsonRecord().format(record)
