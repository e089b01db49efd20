"""Chromium, and what the tests of the pages do in it."""

import re
import shutil

import pytest
from playwright.sync_api import Browser, Page, expect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def open_link(browser: Browser, link: str, name: str | None = None, **settings: object) -> Page:
    page = browser.new_context(**settings).new_page()  # type: ignore[arg-type]  # names are checked by playwright
    page.set_default_timeout(20_000)
    page.goto(link)
    if name:
        page.get_by_label("Your name").fill(name)
        page.get_by_role("button", name="Start").click()
    page.wait_for_url(re.compile(r":\d+/$"))  # the page is loaded and listens to keys
    return page


def press(page: Page, key: str) -> None:
    """Press a key and wait for the next pair."""
    ticket = page.locator("[name=ticket]").first.input_value()
    page.keyboard.press(key)
    expect(page.locator(f'[name=ticket][value="{ticket}"]')).to_have_count(0)


def prompt(page: Page) -> str:
    return page.locator("#prompt").inner_text()


def assert_fits(page: Page, width: int, height: int) -> None:
    for name in ("Choose the first image", "Choose the second image", "Tie", "Skip", "Undo"):
        box = page.get_by_role("button", name=name).bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["y"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["y"] + box["height"] <= height
        # target size of at least 24 pixels, by WCAG 2.2
        assert min(box["width"], box["height"]) >= 24
    first, second = (page.locator(f"#{side}").bounding_box() for side in ("left", "right"))
    assert first is not None
    assert second is not None
    # a browser lays out in 64ths of a pixel
    assert (first["width"], first["height"]) == pytest.approx((second["width"], second["height"]), abs=0.1)
