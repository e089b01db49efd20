"""The labelling page: routes, and what happens at each."""

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any
from uuid import UUID

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ...store import ImageError, PairStore, UsageError
from .annotations import Answers
from .assignment import Desk, Showing, Sitting
from .config import LabelConfig, labeler_name
from .pages import CANNOT, Pages, reason
from .queue import Shown, details, pairs_to_label, standing
from .security import Door, Guard, cookie_name
from .thumbnails import Pictures

_AHEAD = 64
_SIDES = {"left": {"a": "a", "b": "b"}, "right": {"a": "b", "b": "a"}}


class LabelPage:
    """What the page knows while it runs."""

    def __init__(
        self, config: LabelConfig, store: PairStore, run_id: UUID, announce: Callable[[str, str | None], None]
    ) -> None:
        self.config, self.store = config, store
        store.ingest()  # labels that another run of the page wrote last
        self.desk = Desk(config, pairs_to_label(store, config))
        self.desk.load(standing(store))
        self.answers = Answers(store, run_id)
        self.pictures = Pictures(store)
        self.door: Door[Sitting] = Door(announce)
        self.left_out: Counter[str] = Counter()
        """Pairs with a picture that cannot be shown, by reason."""
        self._details: dict[UUID, Shown] = {}
        self._lock = threading.Lock()

    # People

    def sit(self, typed: str) -> Sitting:
        """Begin with a name.

        Raises:
            UsageError: where it is no name, or one of a labeler who is no person.
        """
        labeler = labeler_name(typed)
        if not self.desk.knows(labeler):
            self.answers.describe(labeler)
            self.desk.load(standing(self.store, labeler))
        return self.desk.sit(labeler)

    # Showing

    def shown(self, sitting: Sitting) -> list[tuple[Showing, Shown]]:
        """The pair before a person and the one that comes next, both with pictures that can be shown."""
        while True:
            line = self.desk.line(sitting)
            found = [(showing, self._whole(showing.pair)) for showing in line]
            if all(shown for _, shown in found):
                return [(showing, shown) for showing, shown in found if shown]

    def _whole(self, pair: UUID) -> Shown | None:
        """What is shown of a pair; None, and the pair is left out, where it cannot be shown."""
        with self._lock:
            if pair not in self._details:
                self._details = details(self.store, [pair, *self.desk.ahead(_AHEAD)])
            shown = self._details.get(pair)
        try:
            if shown is None:
                raise ImageError("missing", "the store has no row of a picture")
            for image, form in zip((shown.image_a, shown.image_b), shown.formats, strict=True):
                self.pictures.shown(image, form)
        except ImageError as error:
            self.left_out[f"image {error.reason}"] += 1
            self.desk.drop(pair)
            return None
        return shown

    # Choosing

    def choose(self, sitting: Sitting, form: dict[str, str]) -> str:
        """Write what a form says; what to tell about it.

        Raises:
            UsageError: where it says nothing the page knows.
            PrefloopError, OSError: where it cannot be written; nothing has changed then.
        """
        choice = form.get("choice", "")
        if choice == "undo":
            return self._undo(sitting)
        if choice not in ("left", "right", "tie", "skip"):
            raise UsageError("choose left, right, tie, skip or undo")
        line = self.desk.line(sitting)
        if not line or form.get("ticket") != line[0].ticket:
            return "That pair is no longer before you; nothing was saved for it."
        showing, labeler = line[0], sitting.labeler
        before = self.desk.standing(labeler, showing.pair)
        picture = _SIDES[choice][showing.left] if choice in _SIDES else choice
        ms = form.get("ms", "")
        rep = self.desk.next_rep(labeler, showing.pair)
        self.answers.write(labeler, showing.pair, rep, picture, showing.left, int(ms) if _is_count(ms) else None)
        self.desk.answered(sitting, showing, picture, before)
        return f"Saved: {_TOLD[choice]}."

    def _undo(self, sitting: Sitting) -> str:
        if not sitting.answers:
            return "There is nothing to undo."
        last = sitting.answers[-1]
        rep = self.desk.next_rep(sitting.labeler, last.showing.pair)
        self.answers.take_back(sitting.labeler, last.showing.pair, rep, last.before)
        self.desk.undone(sitting)
        return "Undone: choose again."

    def settle(self) -> None:
        """Take labels into the tables, and pairs that are new into the queue where it runs out."""
        self.answers.settle()
        if self.desk.n_open() < _AHEAD and self.config.limit is None:
            self.desk.extend(pairs_to_label(self.store, self.config))


_TOLD = {"left": "the first picture", "right": "the second picture", "tie": "a tie", "skip": "skipped"}


def _by_script(request: Request) -> bool:
    return "hx-request" in request.headers


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 12


def label_app(page: LabelPage, port: int) -> Guard:
    """The page as an ASGI application."""
    pages = Pages("prefloop label")
    cookie = cookie_name("label", port)

    def desk(request: Request, told: str = "", status: int = 200) -> Response:
        sitting: Sitting = request.state.session
        fragment = "desk.html" if _by_script(request) else "label.html"
        try:
            line = page.shown(sitting)
        except CANNOT as error:
            return pages.problem(request, f"{told} {reason(error)}".strip(), 503)
        values: dict[str, Any] = {
            "labeler": sitting.labeler,
            "progress": page.desk.progress(sitting.labeler),
            "told": told,
            "wrong": status >= 400,
            "unsaved": status == 503,
            "can_undo": bool(sitting.answers),
            "elsewhere": page.desk.elsewhere(sitting),
            "pair": _sides(*line[0]) if line else None,
            "next": [_sides(*one) for one in line[1:]],
        }
        return pages.render(request, fragment, values, status)

    def show(request: Request) -> Response:
        with request.state.session.lock:
            return desk(request)

    def answer(request: Request) -> Response:
        sitting: Sitting = request.state.session
        with sitting.lock:
            try:
                told = page.choose(sitting, request.state.form)
            except UsageError as error:
                return desk(request, str(error), 400)
            except CANNOT as error:
                then = (
                    "It is sent again by itself; leave this page open."
                    if _by_script(request)
                    else "Choose again later."
                )
                return desk(request, f"Not saved yet: {reason(error)}. {then}", 503)
            if not _by_script(request):
                return RedirectResponse("/", 303)
            return desk(request, told)

    def enter(request: Request) -> Response:
        return pages.enter(request, page.door, cookie, page.sit, named=True)

    def image(request: Request) -> Response:
        return page.pictures.respond(request.path_params["name"])

    routes = [
        Route("/", show, methods=["GET"]),
        Route("/answer", answer, methods=["POST"]),
        Route("/enter", enter, methods=["GET", "POST"]),
        Route("/image/{name}", image, methods=["GET"]),
        pages.static(),
    ]
    inner = Starlette(routes=routes, exception_handlers=pages.handlers())
    inner.router.redirect_slashes = False
    return Guard(inner, page.door, page.config, cookie, pages.stranger)


def _sides(showing: Showing, shown: Shown) -> dict[str, Any]:
    pictures = {"a": (shown.image_a, shown.size_a), "b": (shown.image_b, shown.size_b)}
    other = {"a": "b", "b": "a"}[showing.left]
    return {
        "ticket": showing.ticket,
        "prompt": shown.prompt,
        "pictures": [
            {"side": side, "hex": image.hex, "width": width, "height": height}
            for side, (image, (width, height)) in zip(
                ("left", "right"), (pictures[showing.left], pictures[other]), strict=True
            )
        ],
    }
