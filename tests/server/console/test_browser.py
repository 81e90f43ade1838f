"""The console in a real Chromium, where one is installed: no policy is broken, no dialog opens, all fits a phone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.server.agency import free_port
from tests.server.console.test_console import HOSTILE, PAGES, PASSWORD, served
from tests.server.seen_home import add_run, changed_settings, make_seen_home, with_refusal

from sovfed.server.console.users import add_user

CHROMIUM = shutil.which("chromium")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BEYOND = """[...document.querySelectorAll("main td, main th, main dd, main code")].filter(
    (cell) => cell.getBoundingClientRect().right > window.innerWidth + 1).map((cell) => cell.textContent)"""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    home = make_seen_home(tmp_path)
    add_run(home, "heart-1", "finished", 20)
    with_refusal(home, add_run(home, "hostile", "failed", 3), HOSTILE)
    add_user(home, "anna", "operator", PASSWORD)
    changed_settings(home, console_port=free_port())
    with served(home) as where:
        yield where


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: Debian has it")
def test_a_person_with_a_keyboard_logs_in_and_sees_every_page_on_a_phone(address: str) -> None:
    problems = list[str]()
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page: Any = browser.new_page(viewport={"width": 360, "height": 740})
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.goto(f"{address}/")
        page.keyboard.type("anna")
        page.keyboard.press("Tab")
        page.keyboard.type(PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url(f"{address}/")
        for path in (*PAGES, "/runs/hostile"):
            page.goto(f"{address}{path}")
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
            assert page.evaluate(BEYOND) == [], path
            assert page.get_by_role("main").count() == 1
        page.goto(f"{address}/runs")
        with page.expect_response(lambda answer: answer.request.headers.get("hx-request") == "true") as fetched:
            pass
        assert fetched.value.status == 200
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to content"
        browser.close()
    assert problems == []
