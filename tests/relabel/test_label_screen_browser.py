"""The labelling page in a real browser: long prompts, images at full size, notes, contrast, names, another device."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsers import CHROMIUM, assert_fits, open_link, press
from content import add_pair, add_prompt
from pages import label_server, serving
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from prefloop.relabel.annotate.app import label_app
from prefloop.store import PairStore, PrefloopError
from prefloop.store.images import png_bytes

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed: `apt-get install chromium` as root, then run the tests again"
)
PROMPTS = {
    "words": "A sprawling night market under paper lanterns, " * 14 + "END",
    "lines": "\n".join(f"line {number}: a lighthouse in a stormy sea" for number in range(20)) + "\nEND",
    "unbroken": "masterpiece_best_quality_" * 30 + "END",
    "right to left": "قطة حمراء تجلس على سور قديم في ضوء المساء. " * 16 + "END",
    "emoji": "👩‍🚀🚀🌕🐈‍⬛" * 80 + "END",
}
SCREENS = [(400, 844), (1400, 900), (844, 390)]
SIDE = 1600


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    """A pair for each long prompt and one short one; the images are larger than the screens, red and blue."""
    store = PairStore.create(tmp_path_factory.mktemp("screens") / "store")
    rows = [
        store.write_image(png_bytes(Image.new("RGB", (SIDE, SIDE), color)), SIDE, SIDE)
        for color in ((200, 20, 20), (20, 20, 200))
    ]
    store.append("images", rows)
    for text in ("short", *PROMPTS.values()):
        add_pair(store, add_prompt(store, text), *(row["image_id"] for row in rows))
    store.ingest()
    return store


@pytest.fixture
def store(filled: PairStore, tmp_path: Path) -> PairStore:
    return PairStore(shutil.copytree(filled.path, tmp_path / "store"))


def labels(store: PairStore) -> list[tuple]:
    store.ingest()
    return store.rows("select choice = shown_left, choice, both_bad, flag, comment from human_labels order by all")


# Long prompts


@pytest.mark.slow(reason="drives a browser")
def test_long_prompts_scroll_in_their_box_and_the_images_stay_on_the_screen(store: PairStore, browser: Browser):
    last_word = """() => {
        const prompt = document.getElementById("prompt"), range = document.createRange(), text = prompt.firstChild
        range.setStart(text, text.length - 3)
        range.setEnd(text, text.length)
        prompt.scrollTop = 1e6
        const end = range.getBoundingClientRect(), box = prompt.getBoundingClientRect()
        return end.top >= box.top - 1 && end.bottom <= box.bottom + 1 && end.left >= box.left && end.right <= box.right
    }"""
    with label_server(store, labelers=("me",)).serving() as link:
        page = open_link(browser, link(), has_touch=True)
        seen = set()
        for _ in range(len(PROMPTS) + 1):
            text = page.locator("#prompt").text_content() or ""
            seen.add(text)
            for width, height in SCREENS:
                page.set_viewport_size({"width": width, "height": height})
                expand = page.locator("#expand")
                if text == "short":
                    expect(expand).to_be_hidden()
                    continue
                expect(expand).to_be_visible()
                for is_open in (False, True):
                    assert_fits(page, width, height)
                    box = page.locator("#left").bounding_box()
                    assert box is not None
                    assert box["height"] >= (0.1 if is_open else 0.2) * height, (text[:20], width, is_open)
                    scrolls = "({scrollWidth: a, clientWidth: b}) => a > b"
                    assert not page.locator("#prompt").evaluate(scrolls)
                    assert not page.locator("html").evaluate(scrolls)
                    assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
                    assert page.evaluate(last_word), (text[:20], width, is_open)
                    page.keyboard.press("p")
                expect(expand).to_have_attribute("aria-expanded", "false")
            press(page, "s")
        page.context.close()
    assert seen == {"short", *PROMPTS.values()}


# Full size


def shown_color(page: Page) -> tuple[int, int, int]:
    """The pixel in the middle of the stage."""
    image = Image.open(io.BytesIO(page.locator(".stage").screenshot())).convert("RGB")
    return image.getpixel((image.width // 2, image.height // 2))  # type: ignore[return-value]


def place(page: Page) -> tuple[float, ...]:
    """Left, top and width of the images, which are the same for both."""
    places = page.locator(".sheet img").evaluate_all(
        "images => images.map(i => i.getBoundingClientRect()).map(({x, y, width}) => [x, y, width])"
    )
    assert places[0] == places[1]
    return tuple(round(value, 1) for value in places[0])


@pytest.mark.slow(reason="drives a browser")
def test_both_images_at_full_size_are_at_the_same_place_and_keys_do_not_choose(store: PairStore, browser: Browser):
    with label_server(store, labelers=("me",)).serving() as link:
        page = open_link(browser, link(), viewport={"width": 1000, "height": 700})
        ticket = page.locator("[name=ticket]").first.input_value()
        page.keyboard.press("z")
        expect(page.locator("#zoom-name")).to_have_text("First image, 100 %")
        first = shown_color(page)
        assert place(page)[2] == SIDE  # a pixel of the image is a pixel of the screen
        before = place(page)
        page.keyboard.press(" ")
        expect(page.locator("#zoom-name")).to_have_text("Second image, 100 %")
        assert {first, shown_color(page)} == {(200, 20, 20), (20, 20, 200)}
        assert place(page) == before
        for key, name in (("ArrowLeft", "First"), ("ArrowRight", "Second"), ("1", "First"), ("2", "Second")):
            page.keyboard.press(key)
            expect(page.locator("#zoom-name")).to_contain_text(f"{name} image")
        page.keyboard.press("+")
        expect(page.locator("#zoom-name")).to_have_text("Second image, 125 %")
        assert place(page)[2] == 1.25 * SIDE
        # dragging moves both; a click without moving flips
        page.mouse.move(500, 300)
        page.mouse.down()
        page.mouse.move(440, 280)
        page.mouse.up()
        moved = place(page)
        page.mouse.click(500, 300)
        expect(page.locator("#zoom-name")).to_have_text("First image, 125 %")
        assert place(page) == moved
        # the wheel zooms about the pointer: what is below it stays
        page.mouse.wheel(0, -100)
        x, y, width = place(page)
        assert (500 - x) / width == pytest.approx((500 - moved[0]) / moved[2], abs=1e-3)
        page.keyboard.press("0")  # the whole image
        x, y, width = place(page)
        stage = page.locator(".stage").bounding_box()
        assert stage is not None
        assert (width, y) == pytest.approx((stage["height"], 0), abs=1)
        for key in ("t", "x", "s", "u", "ArrowUp", "ArrowDown"):
            page.keyboard.press(key)
        page.keyboard.press("Escape")
        expect(page.locator("#zoom")).to_be_hidden()
        assert page.locator("[name=ticket]").first.input_value() == ticket
        press(page, "ArrowLeft")
        page.context.close()
    assert [row[0] for row in labels(store)] == [True]


@pytest.mark.slow(reason="drives a browser")
def test_two_fingers_zoom_one_pans_and_a_tap_flips(store: PairStore, browser: Browser):
    with label_server(store, labelers=("me",)).serving() as link:
        page = open_link(browser, link(), viewport={"width": 400, "height": 844}, has_touch=True, is_mobile=True)
        page.get_by_role("button", name="Enlarge").tap()
        expect(page.locator("#zoom-name")).to_have_text("First image, 100 %")
        touch = page.context.new_cdp_session(page)

        def fingers(kind: str, *points: tuple[float, float]) -> None:
            touches = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
            touch.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": touches})

        page.touchscreen.tap(200, 300)
        expect(page.locator("#zoom-name")).to_have_text("Second image, 100 %")
        x, y, _ = place(page)
        fingers("Start", (200, 300))
        fingers("Move", (230, 340))
        fingers("End")
        assert place(page) == (x + 30, y + 40, SIDE)
        fingers("Start", (150, 300), (250, 300))
        fingers("Move", (100, 300), (300, 300))  # twice as far apart
        fingers("End")
        # the point between the fingers stays
        assert place(page) == pytest.approx((200 - 2 * (200 - x - 30), 300 - 2 * (300 - y - 40), 2 * SIDE), abs=1)
        expect(page.locator("#zoom-name")).to_have_text("Second image, 200 %")
        page.get_by_role("button", name="Close").tap()
        expect(page.locator("#zoom")).to_be_hidden()
        page.context.close()
    assert labels(store) == []


# Notes


@pytest.mark.slow(reason="drives a browser")
def test_notes_by_keyboard_are_saved_and_their_keys_choose_nothing(store: PairStore, browser: Browser):
    with label_server(store, labelers=("me",)).serving() as link:
        page = open_link(browser, link())
        printed: list[str] = []
        page.on("console", lambda message: printed.append(message.text))
        page.on("pageerror", lambda error: printed.append(str(error)))
        page.keyboard.press("c")
        page.keyboard.type("six fingers, 1 too few: stuxz")
        page.keyboard.press("Enter")
        page.keyboard.type("f")
        page.keyboard.press("Escape")
        for flag in ("broken image", "unsafe"):
            page.keyboard.press("f")
            expect(page.locator("#announcement")).to_have_text(f"Flag: {flag}")
        press(page, "ArrowRight")
        expect(page.locator(".message")).to_have_text("Saved: the second image, flagged: unsafe, with a comment.")
        expect(page.locator("#notes")).to_be_hidden()  # the next pair has none yet
        # a flag chosen by mouse: the arrow keys choose an image, not the next flag
        page.get_by_role("button", name="Flag").click()
        page.get_by_role("radio", name="Other").click()
        press(page, "ArrowLeft")
        # Enter in a flag does not send the form
        page.keyboard.press("f")
        page.get_by_role("radio", name="Broken image").focus()
        page.keyboard.press("Enter")
        page.keyboard.press("Escape")
        press(page, "x")
        press(page, "u")  # and the undone notes are there again
        expect(page.get_by_role("radio", name="Broken image")).to_be_checked()
        page.get_by_role("button", name="Both bad").click()
        expect(page.locator(".message")).to_have_text("Saved: both bad, flagged: broken image.")
        page.context.close()
    assert printed == []
    right, left, bad = sorted(labels(store), key=lambda row: (row[2], row[4] is None))
    assert (right[0], *right[2:]) == (False, False, "unsafe", "six fingers, 1 too few: stuxz\nf")
    assert (left[0], *left[2:]) == (True, False, "other", None)
    assert bad[1:] == ("tie", True, "broken image", None)


@pytest.mark.slow(reason="drives a browser")
def test_a_comment_is_sent_again_with_an_answer_that_was_not_saved(
    store: PairStore, browser: Browser, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise PrefloopError("cannot write: no space left")

    with label_server(store, labelers=("me",)).serving() as link:
        page = open_link(browser, link())
        page.keyboard.press("c")
        page.keyboard.type("kept")
        page.keyboard.press("Escape")
        with monkeypatch.context() as disk:
            disk.setattr(PairStore, "append", full)
            page.keyboard.press("x")
            expect(page.locator(".message")).to_contain_text("Not saved yet")
            expect(page.locator("#comment")).to_have_value("kept")
        expect(page.locator(".message")).to_have_text("Saved: both bad, with a comment.")
        page.context.close()
    assert [row[1:] for row in labels(store)] == [("tie", True, None, "kept")]


# Contrast, names, focus

LOW_CONTRAST = """() => {
    const parts = (color) => color.match(/[\\d.]+/g).map(Number)
    const linear = (value) => value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4
    const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b)
    const background = (element) => {
        for (; element; element = element.parentElement) {
            const color = parts(getComputedStyle(element).backgroundColor)
            if (color.length === 3 || color[3] === 1) return color
        }
        return [255, 255, 255]
    }
    const found = []
    for (const element of document.querySelectorAll("body *")) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()) || element.matches("textarea")
        if (!own || !element.checkVisibility() || element.matches(":disabled, :disabled *")) continue
        const levels = [luminance(parts(getComputedStyle(element).color)), luminance(background(element))].sort((a, b) => b - a)
        const ratio = (levels[0] + 0.05) / (levels[1] + 0.05)
        if (ratio < 4.5) found.push(`${element.tagName}#${element.id} ${element.textContent}: ${ratio}`)
    }
    return found
}"""
NAMES = [
    "Choose the first image",
    "Choose the second image",
    "Tie",
    "Both bad",
    "Undo",
    "Enlarge",
    "Comment",
    "Flag",
    "Skip",
    "Whole prompt",
]


@pytest.mark.slow(reason="drives a browser")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_control_has_a_name_a_visible_focus_and_enough_contrast(store: PairStore, browser: Browser, scheme: str):
    with label_server(store, labelers=("me",)).serving() as link:
        page = open_link(browser, link(), viewport={"width": 1400, "height": 900}, color_scheme=scheme)
        while page.locator("#prompt").text_content() == "short":
            press(page, "t")
        page.keyboard.press("f")  # a flag that is chosen, with the notes open
        page.keyboard.press("c")
        page.keyboard.press("Escape")
        assert page.evaluate(LOW_CONTRAST) == []
        reached = set()
        for _ in range(40):
            page.keyboard.press("Tab")
            name, outline, width = page.evaluate(
                """() => {
                    const shown = document.activeElement, seen = shown.type === "radio" ? shown.nextElementSibling : shown
                    const style = getComputedStyle(seen)
                    return [shown.id || shown.value || shown.tagName, style.outlineStyle, parseFloat(style.outlineWidth)]
                }"""
            )
            if name == "BODY":  # past the last control; the next one is the first
                continue
            reached.add(name)
            assert (outline, width >= 2) == ("solid", True), name
        controls = {
            "left",
            "right",
            "tie",
            "bad",
            "enlarge",
            "comment-button",
            "flag-button",
            "skip",
            "comment",
            "expand",
        }
        assert controls | {"prompt", "broken image"} <= reached
        for name in NAMES:
            assert page.get_by_role("button", name=name).count() == 1, name
        expect(page.get_by_role("radiogroup", name="Something is wrong with this pair")).to_be_visible()
        expect(page.get_by_role("textbox", name="Comment about this pair")).to_be_visible()
        expect(page.get_by_role("group", name="Which image is better for this prompt?")).to_be_visible()
        page.keyboard.press("z")
        expect(page.get_by_role("dialog", name="First image")).to_be_visible()
        for name in ("Flip", "Smaller", "Larger", "Fit", "Close"):
            expect(page.get_by_role("button", name=name)).to_be_visible()
        assert page.evaluate(LOW_CONTRAST) == []
        page.context.close()


# Another device


@pytest.mark.slow(reason="drives a browser")
def test_the_link_for_a_phone_works_there_and_fits_its_screen(store: PairStore, browser: Browser):
    server = label_server(store, labelers=("me",))
    with serving(lambda port: label_app(server.page, port, f"http://127.0.0.1:{port}")) as root:
        page = open_link(browser, f"{root}/enter?token={server.links[-1][0]}", viewport={"width": 400, "height": 844})
        page.locator(".device summary").click()
        code = page.locator("#device-link")
        box = code.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 400
        phone = open_link(browser, code.inner_text())
        expect(phone.locator(".who")).to_contain_text("human:me")
        press(phone, "ArrowLeft")
        for context in (page.context, phone.context):
            context.close()
    assert len(labels(store)) == 1
