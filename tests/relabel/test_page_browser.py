"""The pages in a real browser: labelling by keyboard and touch, two people at once, a full disk, a killed server, styles."""

import io
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsers import CHROMIUM, assert_fits, open_link, press, prompt
from conftest import add_halves
from content import add_pair, add_prompt, command, environment
from pages import label_server, serving
from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright
from prefloop import eval as evaluation
from prefloop.relabel import annotate, validation
from prefloop.relabel.annotate.browse import browse_app
from prefloop.relabel.annotate.config import BrowseConfig
from prefloop.relabel.annotate.security import InviteLinks
from prefloop.store import PairStore, PrefloopError
from prefloop.store.check import check
from prefloop.store.maintenance.compact import compact
from prefloop.train.config import TrainConfig
from prefloop.train.pairs import select_pairs

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed: `apt-get install chromium` as root, then run the tests again"
)
MARKUP = "<img src=x onerror=document.title='hit'> <script>document.title='hit'</script> & so on"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    """26 prompts, one of them full of markup, with a pair each; the same two images for all."""
    store = PairStore.create(tmp_path_factory.mktemp("browser") / "store")
    red, blue = (add_halves(store, color) for color in ((200, 20, 20), (20, 20, 200)))
    for number in range(26):
        add_pair(store, add_prompt(store, MARKUP if number == 7 else f"prompt {number}"), red, blue)
    compact(store)
    return store


@pytest.fixture
def store(filled: PairStore, tmp_path: Path) -> PairStore:
    shutil.copytree(filled.path, tmp_path / "store")
    return PairStore.open(tmp_path / "store")


@pytest.mark.slow(reason="drives a browser")
def test_twenty_pairs_by_keyboard_and_one_undone_are_found_in_sql(store: PairStore, browser: Browser):
    printed: list[str] = []
    chosen: dict[str, str] = {}
    last = ""
    with label_server(store).serving() as link:
        page = open_link(browser, link(), "ann")
        page.on("console", lambda message: printed.append(message.text))
        page.on("pageerror", lambda error: printed.append(str(error)))
        expect(page.locator("#prompt")).to_be_visible()
        for number in range(20):
            key = ("ArrowLeft", "ArrowRight", "ArrowDown", "s", "1")[number % 5]
            last = prompt(page)
            chosen[last] = key
            press(page, key)
            expect(page.locator("#announcement")).to_contain_text("Saved")
        press(page, "u")
        assert prompt(page) == last
        chosen[last] = "tie"
        press(page, "ArrowDown")
        expect(page.locator(".progress")).to_contain_text("20 of 26")
        while MARKUP not in chosen:
            chosen[prompt(page)] = "s"
            press(page, "s")
        assert page.title() == "prefloop label"  # the markup did nothing
        page.context.close()
    assert printed == []
    assert check(PairStore.open(store.path)) == []
    rows = store.rows(
        """select q.prompt, l.choice, l.shown_left, l.response_ms from current_labels l
        join pairs using (pair_id) join prompts q using (prompt_id) where l.labeler = 'human:ann'"""
    )
    choices = {"ArrowDown": "tie", "tie": "tie", "s": "skip"}
    expected = {text: choices.get(key, key) for text, key in chosen.items()}
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
    # and those decided are what training on this person reads
    pairs = select_pairs(store, TrainConfig(labelers=("human:ann",), output_dir="unused"))
    decided = {text for text, key in expected.items() if key not in ("tie", "skip")}
    assert {pair.prompt for part in (pairs.train, pairs.validation) for pair in part} == decided


@pytest.mark.slow(reason="drives a browser")
def test_two_browsers_at_once_never_get_the_same_pair(store: PairStore, browser: Browser):
    with label_server(store, limit=12).serving() as link:
        people = [open_link(browser, link(), name) for name in ("ann", "bob")]
        shown: list[str] = []
        for _ in range(5):
            both = [prompt(page) for page in people]
            assert both[0] != both[1]
            shown += both
            for page in people:
                page.keyboard.press("ArrowLeft")  # without waiting for the other's answer
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


@pytest.mark.slow(reason="drives a browser")
def test_an_answer_that_cannot_be_saved_is_kept_in_the_browser_and_sent_again(
    store: PairStore, browser: Browser, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise PrefloopError("cannot write: no space left")

    with label_server(store, labelers=("ann",)).serving() as link:
        page = open_link(browser, link())
        text = prompt(page)
        with monkeypatch.context() as disk:
            disk.setattr(PairStore, "append", full)
            page.wait_for_timeout(300)  # how long the person looks at the images
            page.keyboard.press("ArrowRight")
            expect(page.locator(".message")).to_contain_text("Not saved yet: cannot write")
            assert prompt(page) == text
            expect(page.locator("#right")).to_have_class(re.compile("chosen"))
        expect(page.locator(".message")).to_contain_text("Saved: the second image")  # nobody pressed a key
        expect(page.locator("#prompt")).not_to_have_text(text)
        page.context.close()
    ((saved, ms),) = PairStore.open(store.path).rows(
        "select prompt, response_ms from labels join pairs using (pair_id) join prompts using (prompt_id)"
    )
    assert (saved, 300 <= ms < 2000) == (text, True)  # until the first try, not until it was saved


@pytest.mark.slow(reason="drives a browser")
def test_a_choice_made_as_soon_as_a_pair_appears_is_sent_by_the_script(store: PairStore, browser: Browser):
    click_at_once = """() => {
        window.loaded_once = true
        new MutationObserver((_, observer) => { observer.disconnect(); document.getElementById("left").click() })
            .observe(document.body, {childList: true})
    }"""
    with label_server(store, labelers=("me",)).serving() as link:
        page = open_link(browser, link())
        page.evaluate(click_at_once)
        page.keyboard.press("ArrowRight")
        expect(page.locator(".progress")).to_contain_text("2 of 26")
        # a form that the browser sent itself would have loaded the page again, and is lost if the server is down
        assert page.evaluate("window.loaded_once")
        page.context.close()


@pytest.mark.slow(reason="drives a browser")
def test_every_acknowledged_answer_survives_kill_9(store: PairStore, browser: Browser):
    process = subprocess.Popen(
        command("label", "--port", 0, "--labeler", "ann", "--store", store.path),
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        page = open_link(browser, re.findall(r"http://\S+", process.stdout.readline())[0])
        for _ in range(4):
            press(page, "ArrowRight")
        text = prompt(page)
        with page.expect_response("**/answer") as answer:
            page.keyboard.press("ArrowLeft")
        assert answer.value.status == 200
        answer.value.finished()  # its body is here too
        os.kill(process.pid, signal.SIGKILL)
        expect(page.locator("#prompt")).not_to_have_text(text)
        page.keyboard.press("ArrowLeft")
        expect(page.get_by_role("alert")).to_contain_text("Not saved")
        page.context.close()
    finally:
        process.kill()
        process.communicate(timeout=20)
    PairStore.open(store.path)
    assert store.rows("select count(*), count(distinct pair_id) from labels") == [(5, 5)]
    assert check(store) == []
    person = label_server(store).enter("ann")
    assert "5</b> of 26<" in person.text


SCREENS = [(390, 844, "dark", True), (1280, 800, "light", False), (844, 390, "light", True)]


@pytest.mark.slow(reason="drives a browser")
def test_everything_fits_on_one_screen_and_works_by_mouse_and_touch(store: PairStore, browser: Browser):
    with label_server(store, labelers=("me",)).serving() as link:
        for width, height, scheme, touch in SCREENS:
            settings = {"viewport": {"width": width, "height": height}, "color_scheme": scheme, "has_touch": touch}
            page = open_link(browser, link(), **settings)  # a named labeler's link asks for nothing
            assert_fits(page, width, height)
            for locator in (page.locator("#left"), page.locator("#right"), page.get_by_role("button", name="Tie")):
                text = prompt(page)
                locator.tap() if touch else locator.click()
                expect(page.locator("#prompt")).not_to_have_text(text)
            page.get_by_role("button", name="Undo").click()
            expect(page.locator(".message")).to_have_text("Undone: choose again.")
            page.context.close()
    PairStore.open(store.path)
    # on each screen a first and a second image; the tie was undone
    assert store.rows("select count(*) from current_labels where choice in ('a', 'b')") == [(6,)]


@pytest.mark.slow(reason="drives a browser")
def test_filters_are_in_a_link_that_another_browser_opens(store: PairStore, browser: Browser):
    tokens: list[str] = []
    invites: InviteLinks[str] = InviteLinks(lambda token, _: tokens.append(token))
    invites.create()
    with serving(lambda port: browse_app(BrowseConfig(), store, invites, port)) as root:
        page, other = (open_link(browser, f"{root}/enter?token={tokens[-1]}") for _ in range(2))
        printed: list[str] = []
        page.on("console", lambda message: printed.append(message.text))
        page.get_by_role("link", name="26", exact=True).click()
        expect(page.get_by_text("26 pairs")).to_be_visible()
        page.get_by_text("Filter", exact=True).click()
        page.get_by_label("Prompt contains").fill("onerror")
        page.get_by_role("button", name="Show").click()
        expect(page.get_by_text("1 pair", exact=True)).to_be_visible()
        expect(page.locator(".prompt")).to_have_text(MARKUP)
        other.goto(page.url)
        expect(other.locator(".prompt")).to_have_text(MARKUP)
        other.locator(".pair a").click()
        expect(other.get_by_role("heading", level=1)).to_have_text(MARKUP)
        assert printed == []
        for context in (page.context, other.context):
            context.close()
    assert store.rows("select count(*) from runs") == [(0,)]


STYLES = {
    "browse": Path(annotate.__file__).parent / "static" / "page.css",
    "eval": Path(evaluation.__file__).parent / "report.html",
    "quality": Path(validation.__file__).parent / "quality.html",
}


@pytest.mark.slow(reason="drives a browser")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", STYLES)
def test_a_table_that_is_cut_off_has_a_shadow_where_there_is_more(browser: Browser, name: str, scheme: str):
    text = STYLES[name].read_text()
    style = text if name == "browse" else re.findall(r"<style>(.*?)</style>", text, re.S)[0]
    cells = "<td>" + "</td><td>".join(["number"] * 20) + "</td>"
    page = browser.new_page(viewport={"width": 390, "height": 200}, color_scheme=scheme)  # type: ignore[arg-type]
    page.set_content(f"<style>{style}</style><div class=scroll><table><tr>{cells}</tr><tr>{cells}</tr></table></div>")
    area = page.locator(".scroll")
    width = page.evaluate("document.querySelector('.scroll').clientWidth")

    def edges() -> tuple[int, int]:
        """Gray level of the leftmost and the rightmost pixel, above the text of the first row."""
        pixels = Image.open(io.BytesIO(area.screenshot())).convert("L")
        return pixels.getpixel((0, 2)), pixels.getpixel((width - 1, 2))  # type: ignore[return-value]

    left, right = edges()
    plain = left
    assert abs(right - plain) > 20
    page.evaluate("document.querySelector('.scroll').scrollLeft = 1e6")
    left, right = edges()
    assert abs(left - plain) > 20
    assert right == plain
    page.evaluate("document.querySelector('table').innerHTML = '<tr><td>narrow</td></tr>'")
    assert edges() == (plain, plain)
    page.close()


@pytest.mark.slow(reason="drives a browser")
def test_nothing_moves_for_people_who_prefer_reduced_motion(store: PairStore, browser: Browser):
    longest = """Math.max(...[...document.querySelectorAll('*')].flatMap(element =>
        ['', '::-webkit-progress-value'].flatMap(part => {
            const style = getComputedStyle(element, part)
            return (style.transitionDuration + ',' + style.animationDuration).split(',').map(parseFloat)
        })))"""
    with label_server(store, labelers=("me",)).serving() as link:
        for preference, moves in (("no-preference", True), ("reduce", False)):
            page = open_link(browser, link(), reduced_motion=preference)
            assert (page.evaluate(longest) > 0) == moves
            page.context.close()
