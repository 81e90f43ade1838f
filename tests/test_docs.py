"""The documents lead somewhere: every page is in the site's contents, every link resolves, nothing is fetched."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown.extensions.toc import slugify

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SITE: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+\s+(.*?)\s*$", re.MULTILINE)
EXTERNAL = ("http://", "https://", "//")


def pages(nav: list[dict[str, Any]]) -> Iterator[str]:
    """The files that the contents name, in order."""
    for entry in nav:
        for target in entry.values():
            if isinstance(target, list):
                yield from pages(target)
            else:
                yield target


def text(page: Path) -> str:
    """The page without its blocks of code."""
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    return {slugify(re.sub(r"[`*]", "", heading), "-") for heading in HEADING.findall(text(page))}


def test_every_page_is_in_the_contents_once() -> None:
    named = list(pages(SITE["nav"]))
    assert sorted(named) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_own_data_come_first() -> None:
    assert [next(iter(entry)) for entry in SITE["nav"]][:2] == ["Start", "Bring your own data"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_there_are(page: Path) -> None:
    for link in LINK.findall(text(page)):
        if link.startswith(EXTERNAL):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{link}: {target.name} has no such heading"


class Fetched(HTMLParser):
    """Collects what a browser loads for a page from another server."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        urls = [named.get("src"), named.get("srcset"), named.get("href") if tag == "link" else None]
        self.urls += [url for url in urls if url and url.startswith(EXTERNAL)]


def test_the_site_is_built_strictly_and_its_pages_load_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    built = {str(page.relative_to(tmp_path)) for page in tmp_path.rglob("*.html")}
    assert {page.removesuffix(".md") + ".html" for page in pages(SITE["nav"])} <= built
    for name in built:
        fetched = Fetched()
        fetched.feed((tmp_path / name).read_text(encoding="utf-8"))
        assert fetched.urls == [], name
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style


@pytest.mark.parametrize("name", ["task", "connector", "metric", "optimizer", "strategy", "partition"])
def test_the_page_of_an_extension_point_shows_the_file_that_is_built_and_run(name: str) -> None:
    shown = re.search(r"^```python\n(.*?)^```", (DOCS / "extend" / f"{name}.md").read_text(), re.MULTILINE | re.DOTALL)
    assert shown and shown[1] == (ROOT / "examples" / "package" / "lab" / f"{name}.py").read_text()


def test_the_pages_of_extension_points_name_the_packages_own_entry_points() -> None:
    package = (ROOT / "examples" / "package" / "pyproject.toml").read_text()
    shown = "".join(page.read_text() for page in (DOCS / "extend").glob("*.md"))
    entries = re.findall(r'^\[project\.entry-points\."sovfed\.\w+"\]\n.*$', package, re.MULTILINE)
    assert len(entries) == 6 and all(entry in shown for entry in entries)
