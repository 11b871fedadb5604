"""Fixtures of the page's tests."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.browser import Scripted, Tab, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    executable = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    if executable is None:
        pytest.fail("the page's tests need Chromium: apt-get install -y --no-install-recommends chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium refuses to run its sandbox as root, as containers do.
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_tab(browser: "Browser") -> Iterator[Callable[..., Tab]]:
    """Opens an application or an address, with a context's options; at the end nobody may have complained."""
    from playwright.sync_api import expect

    expect.set_options(timeout=20_000)  # a busy machine draws late
    tabs: list[Tab] = []
    with contextlib.ExitStack() as servers:

        def open_tab(served: Any, **options: Any) -> Tab:
            address = served if isinstance(served, str) else servers.enter_context(serving(served))
            context = browser.new_context(**options)
            context.set_default_timeout(20_000)
            tabs.append(Tab(context.new_page(), address))
            tabs[-1].open()
            return tabs[-1]

        yield open_tab
        for tab in tabs:
            tab.page.context.close()  # before its server, whose end it would complain about
    for tab in tabs:
        assert tab.complaints == []
        assert [url for url in tab.requests if not url.startswith(tab.address)] == [], "it works offline"


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[Scripted]:
    scripted = Scripted(tmp_path)
    scripted.engine.load(scripted.backend)
    yield scripted
    scripted.go.set()
    scripted.engine.close()


@pytest.fixture
def tab(scripted: Scripted, open_tab: Callable[..., Tab]) -> Tab:
    from playwright.sync_api import expect

    tab = open_tab(scripted.app)
    expect(tab.page.locator("#state")).to_have_text("Ready")
    return tab
