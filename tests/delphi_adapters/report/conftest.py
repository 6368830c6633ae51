"""A browser, where there is one."""

import os
import shutil

import pytest

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")  # while it is open, asyncio.run fails in this process
def browser():
    """Chromium without a window: $CHROMIUM, one on the PATH, or Playwright's own."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    with api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        except api.Error as error:
            pytest.skip(
                "no browser: set CHROMIUM, or `playwright install chromium` "
                f"({str(error).splitlines()[0]})"
            )
        yield browser
        browser.close()
