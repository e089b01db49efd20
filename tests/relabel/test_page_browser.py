"""The pages in a real browser: labelling by keyboard, two at once, the server killed, every word shown as text."""

import os
import re
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import add_halves
from content import add_pair, add_prompt, command, environment, finished
from playwright.sync_api import Browser, Page, expect, sync_playwright
from prefloop.store import PairStore
from prefloop.store.check import check
from prefloop.store.maintenance.compact import compact

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium: `apt-get install chromium` as root, then run the tests again"
)
MARKUP = "<img src=x onerror=document.title='hit'> <script>document.title='hit'</script> & so on"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    """26 prompts, one of them full of markup, with a pair of each; two pictures for all."""
    store = PairStore.create(tmp_path_factory.mktemp("browser") / "store")
    red, blue = (add_halves(store, colour) for colour in ((200, 20, 20), (20, 20, 200)))
    for number in range(26):
        add_pair(store, add_prompt(store, MARKUP if number == 7 else f"prompt {number}"), red, blue)
    compact(store)
    return store


@pytest.fixture
def store(made: PairStore, tmp_path: Path) -> PairStore:
    shutil.copytree(made.path, tmp_path / "store")
    return PairStore.open(tmp_path / "store")


@contextmanager
def serving(store: PairStore, verb: str, *words: str) -> Iterator[tuple[subprocess.Popen, "Links"]]:
    process = subprocess.Popen(
        command(verb, "--port", 0, "--store", store.path, *words),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process, Links(process)
    finally:
        if process.poll() is None:
            process.terminate()
        out, err = process.communicate(timeout=20)
    assert "Traceback" not in out + err


class Links:
    """The links that a server prints, one by one."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.process = process

    def take(self) -> str:
        assert self.process.stdout is not None
        return re.findall(r"http://\S+", self.process.stdout.readline())[0]


def opened(browser: Browser, link: str, name: str | None = None, **settings: object) -> Page:
    page = browser.new_context(**settings).new_page()  # type: ignore[arg-type]  # names are checked by playwright
    page.goto(link)
    if name:
        page.get_by_label("Your name").fill(name)
        page.get_by_role("button", name="Start").click()
    page.wait_for_url(re.compile(r":\d+/$"))  # loaded: keys are listened to
    return page


def press(page: Page, key: str) -> None:
    """A choice, and the pair that follows it."""
    ticket = page.locator("[name=ticket]").first.input_value()
    page.keyboard.press(key)
    expect(page.locator(f'[name=ticket][value="{ticket}"]')).to_have_count(0)


def prompt(page: Page) -> str:
    return page.locator("#prompt").inner_text()


def test_twenty_pairs_by_keyboard_and_one_undone_are_found_in_sql(store: PairStore, browser: Browser, tmp_path: Path):
    said: list[str] = []
    chosen: dict[str, str] = {}
    last = ""
    with serving(store, "label") as (_, links):
        page = opened(browser, links.take(), "ann")
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        expect(page.locator("#prompt")).to_be_visible()
        for number in range(20):
            key = ("ArrowLeft", "ArrowRight", "ArrowDown", "s", "1")[number % 5]
            chosen[prompt(page)] = key
            last = prompt(page)
            press(page, key)
            expect(page.locator("#said")).to_contain_text("Saved")
        press(page, "u")
        assert prompt(page) == last
        chosen[last] = "tie"
        press(page, "ArrowDown")
        expect(page.locator(".progress")).to_contain_text("20 of 26")
        assert page.title() == "prefloop label"
        while MARKUP not in chosen:
            chosen[prompt(page)] = "s"
            press(page, "s")
        assert page.title() == "prefloop label"
        page.context.close()
    assert said == []
    assert check(PairStore.open(store.path)) == []
    rows = store.rows(
        """select q.prompt, l.choice, l.shown_left, l.response_ms from current_labels l
        join pairs using (pair_id) join prompts q using (prompt_id) where l.labeler = 'human:ann'"""
    )
    kinds = {"ArrowDown": "tie", "tie": "tie", "s": "skip"}
    expected = {text: kinds.get(key, key) for text, key in chosen.items()}
    other = {"a": "b", "b": "a"}
    for text, choice, left, ms in rows:
        sides = {left: ("ArrowLeft", "1"), other[left]: ("ArrowRight",)}
        assert choice == expected[text] or expected[text] in sides[choice], text
        assert 0 <= ms < 60_000
    assert len(rows) == len(expected) >= 20
    # the undone answer, its undoing and the answer that counts
    assert store.rows("select list(revision order by revision) from labels group by pair_id having count(*) > 1") == [
        ([0, 1, 2],)
    ]
    words = ["train", "--labeler", "human:ann", "--max-train-steps", 1, "--train-batch-size", 2, "--cpu"]
    words += ["--output-dir", tmp_path / "tuned", "--store", store.path]
    code, printed = finished(*words, cwd=tmp_path)
    assert code == 0, printed
    assert (tmp_path / "tuned" / "prefloop.json").exists()


def test_two_browsers_at_once_never_get_the_same_pair(store: PairStore, browser: Browser):
    with serving(store, "label", "--limit", "12") as (_, links):
        people = [opened(browser, links.take(), name) for name in ("ann", "bob")]
        shown: list[str] = []
        for page in people:
            expect(page.locator("#prompt")).to_be_visible()
        for _ in range(5):
            both = [prompt(page) for page in people]
            assert both[0] != both[1]
            shown += both
            for page in people:
                page.keyboard.press("ArrowLeft")  # both are on their way at once
            for page, text in zip(people, both, strict=True):
                expect(page.locator("#prompt")).not_to_have_text(text)
        assert len(set(shown)) == 10
        for page in people:
            page.context.close()
    PairStore.open(store.path)
    assert store.rows("select labeler, count(*), count(distinct pair_id) from labels group by all order by all") == [
        ("human:ann", 5, 5),
        ("human:bob", 5, 5),
    ]
    assert store.rows("select count(distinct pair_id) from labels") == [(10,)]


def test_an_answer_that_finds_no_room_is_kept_in_the_browser_and_sent_again(store: PairStore, browser: Browser):
    with serving(store, "label") as (process, links):
        page = opened(browser, links.take(), "ann")
        text = prompt(page)
        _, most = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, most))  # as on a full disk
        page.wait_for_timeout(300)  # so long the person looked
        page.keyboard.press("ArrowRight")
        expect(page.locator(".told")).to_contain_text("Not saved yet: cannot write")
        assert prompt(page) == text
        expect(page.locator("#right")).to_have_class(re.compile("chosen"))
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most, most))
        expect(page.locator(".told")).to_contain_text("Saved: the second picture")  # by itself
        expect(page.locator("#prompt")).not_to_have_text(text)
        page.context.close()
    ((told, ms),) = PairStore.open(store.path).rows(
        "select prompt, response_ms from labels join pairs using (pair_id) join prompts using (prompt_id)"
    )
    assert (told, 300 <= ms < 2000) == (text, True)  # until the first try, not until it was saved


def test_every_acknowledged_answer_outlives_kill_9(store: PairStore, browser: Browser):
    with serving(store, "label") as (process, links):
        page = opened(browser, links.take(), "ann")
        expect(page.locator("#prompt")).to_be_visible()
        for _ in range(4):
            press(page, "ArrowRight")
        text = prompt(page)
        with page.expect_response("**/answer") as answer:
            page.keyboard.press("ArrowLeft")
        assert answer.value.status == 200
        os.kill(process.pid, signal.SIGKILL)
        expect(page.locator("#prompt")).not_to_have_text(text)
        page.keyboard.press("ArrowLeft")
        expect(page.get_by_role("alert")).to_contain_text("Not saved")
        page.context.close()
    PairStore.open(store.path)
    assert store.rows("select count(*), count(distinct pair_id) from labels") == [(5, 5)]
    with serving(store, "label") as (process, links):
        page = opened(browser, links.take(), "ann")
        expect(page.locator(".progress")).to_contain_text("5 of 26")
        page.context.close()
    assert process.returncode == 0
    assert check(PairStore.open(store.path)) == []


SCREENS = [(390, 844, "dark", True), (1280, 800, "light", False), (844, 390, "light", True)]


def test_everything_is_on_one_screen_and_works_by_hand(store: PairStore, browser: Browser):
    with serving(store, "label", "--labeler", "me") as (_, links):
        for width, height, scheme, touch in SCREENS:
            settings = {"viewport": {"width": width, "height": height}, "color_scheme": scheme, "has_touch": touch}
            page = opened(browser, links.take(), **settings)  # a named labeler's link needs no other step
            fits(page, width, height)
            for locator in (page.locator("#left"), page.locator("#right"), page.get_by_role("button", name="Tie")):
                text = prompt(page)
                locator.tap() if touch else locator.click()
                expect(page.locator("#prompt")).not_to_have_text(text)
            page.get_by_role("button", name="Undo").click()
            expect(page.locator(".told")).to_have_text("Undone: choose again.")
            page.context.close()
    PairStore.open(store.path)
    # on each screen a first and a second picture; the tie was undone
    assert store.rows("select count(*) from current_labels where choice in ('a', 'b')") == [(6,)]


def fits(page: Page, width: int, height: int) -> None:
    for name in ("Choose the first picture", "Choose the second picture", "Tie", "Skip", "Undo"):
        box = page.get_by_role("button", name=name).bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["y"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["y"] + box["height"] <= height
        # a finger hits it: 24 pixels by WCAG 2.2
        assert min(box["width"], box["height"]) >= 24
    first, second = (page.locator(f"#{side}").bounding_box() for side in ("left", "right"))
    assert first is not None
    assert second is not None
    assert (first["width"], first["height"]) == (second["width"], second["height"])


def test_what_is_looked_at_stands_in_a_link_that_another_browser_opens(store: PairStore, browser: Browser):
    with serving(store, "browse") as (_, links):
        page, other = opened(browser, links.take()), opened(browser, links.take())
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        expect(page.get_by_text("26 pairs")).to_be_visible()
        page.get_by_text("Filter", exact=True).click()
        page.get_by_label("Prompt contains").fill("onerror")
        page.get_by_role("button", name="Show").click()
        expect(page.get_by_text("1 pair", exact=True)).to_be_visible()
        expect(page.locator(".words")).to_have_text(MARKUP)
        other.goto(page.url)
        expect(other.locator(".words")).to_have_text(MARKUP)
        other.locator(".pair a").click()
        expect(other.get_by_role("heading", level=1)).to_have_text(MARKUP)
        assert said == []
        for context in (page.context, other.context):
            context.close()
    assert store.rows("select count(*) from runs") == [(0,)]
