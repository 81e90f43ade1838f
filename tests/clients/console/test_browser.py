"""An officer signs on the institution's page in a real Chromium, where one is installed: by keyboard, on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.clients.console.test_signing import HOSTILE, asked, make_signing_house, served
from tests.clients.orders.house import House
from tests.server.console.test_browser import BEYOND, CHROMIUM, playwright

from sovfed.clients.console.app import PASSWORD, USER
from sovfed.clients.orders.book import OrderBook

WORDS = "five random words are better"
UNNAMED = """[...document.querySelectorAll("form input:not([type=hidden]), form select")].filter(
    (field) => !field.labels.length || !field.closest("fieldset").querySelector("legend").textContent)"""


@pytest.fixture
def house(tmp_path: Path) -> House:
    house = make_signing_house(tmp_path, ("ito",), WORDS)
    asked(house, "hostile", purpose=HOSTILE), asked(house, "heart-2027")
    return house


@pytest.fixture
def page(house: House) -> Iterator[Any]:
    """The page of orders at the width of a phone, with what its browser complained of."""
    home, problems = house.folder / "h1", list[str]()
    with served(home) as console, playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        login = {"username": USER, "password": (home / PASSWORD).read_text()}
        page = browser.new_page(viewport={"width": 360, "height": 740}, http_credentials=login)
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.goto(f"{console.address}/orders")
        yield page
        browser.close()
    assert [line for line in problems if "409 (Conflict)" not in line] == []


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: Debian has it")
def test_an_officer_with_a_keyboard_signs_and_refuses_on_a_phone(house: House, page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate(BEYOND) == [] and page.evaluate(UNNAMED) == []
    form = page.get_by_role("region", name="heart-2027").get_by_role(
        "group", name="This institution's word on heart-2027"
    )
    form.get_by_label("Passphrase of the officer's key").focus()
    page.keyboard.type("a wrong one")
    page.keyboard.press("Enter")  # nothing was chosen: nothing is sent
    assert page.get_by_role("alert").count() == 0
    form.get_by_role("radio", name="Sign").focus()
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == "officer"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#problem")
    assert "another passphrase" in page.get_by_role("alert").text_content()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert form.get_by_role("radio", name="Sign").is_checked() is False
    form.get_by_role("radio", name="Sign").focus()
    page.keyboard.press("Space")
    form.get_by_label("Passphrase of the officer's key").focus()
    page.keyboard.type(WORDS)
    page.keyboard.press("Enter")
    page.wait_for_url("**/orders?said=*")
    assert "heart-2027: signed by ito" in page.get_by_role("status").text_content()
    assert page.get_by_role("region", name="heart-2027").count() == 0
    form = page.get_by_role("region", name="hostile").get_by_role("group", name="This institution's word on hostile")
    form.get_by_role("radio", name="Refuse").check()
    form.get_by_role("textbox", name="Reason").fill(HOSTILE)
    form.get_by_label("Passphrase of the officer's key").fill(WORDS)
    form.get_by_role("button", name="Give this word").click()
    page.wait_for_selector("text=refused by ito")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360 and page.evaluate(BEYOND) == []
    said = {
        proposal.order.run: answer.decision for proposal, answer in OrderBook(house.folder / "h1").words() if answer
    }
    assert said == {"heart-2027": "signed", "hostile": "refused"}
