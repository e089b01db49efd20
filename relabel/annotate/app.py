"""The labelling page: its state, and what each route does."""

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
from .annotations import Annotations
from .assignment import Answer, Assignment, LabelQueue, Session
from .config import LOOPBACK, LabelConfig, labeler_name
from .notes import BOTH_BAD, FLAGS, MAX_COMMENT, Label, Notes
from .pages import STORE_ERRORS, Pages, sentence
from .queue import BlindPair, blind_pairs, current_labels, pairs_to_label
from .security import InviteLinks, SecurityMiddleware, cookie_name
from .thumbnails import ImageCache

_PREFETCH = 64
"""Pairs whose prompts and images are looked up in one query."""
_SIDES = {"left": {"a": "a", "b": "b"}, "right": {"a": "b", "b": "a"}}
"""Side chosen → image on the left → image chosen."""
_SAVED = {
    "left": "the first image",
    "right": "the second image",
    "tie": "a tie",
    BOTH_BAD: "both bad",
    "skip": "skipped",
}


class LabelPage:
    """The state of the page while it runs."""

    def __init__(
        self, config: LabelConfig, store: PairStore, run_id: UUID, announce: Callable[[str, str | None], None]
    ) -> None:
        self.config, self.store = config, store
        store.ingest()  # labels that an earlier run of the page wrote last
        self.queue = LabelQueue(config, pairs_to_label(store, config))
        self.queue.load(current_labels(store))
        self.annotations = Annotations(store, run_id)
        self.images = ImageCache(store)
        self.invites: InviteLinks[Session] = InviteLinks(announce)
        self.excluded: Counter[str] = Counter()
        """Pairs with an image that cannot be shown, by reason."""
        self._details: dict[UUID, BlindPair] = {}
        self._lock = threading.Lock()

    # People

    def open_session(self, typed: str) -> Session:
        """Begin a session for a name.

        Raises:
            UsageError: if the name is not valid, or belongs to a labeler that is not a person.
        """
        labeler = labeler_name(typed)
        if not self.queue.knows(labeler):
            self.annotations.add_labeler(labeler)
            self.queue.load(current_labels(self.store, labeler))
        return self.queue.open_session(labeler)

    # Showing

    def pairs_for(self, session: Session) -> list[tuple[Assignment, BlindPair]]:
        """The pair that a person sees and the next one, both with images that can be shown."""
        while True:
            pairs = [(assignment, self._showable(assignment.pair)) for assignment in self.queue.assignments(session)]
            if all(pair for _, pair in pairs):
                return [(assignment, pair) for assignment, pair in pairs if pair]

    def _showable(self, pair_id: UUID) -> BlindPair | None:
        """What is shown of a pair. If that fails, None, and the pair is dropped from the queue."""
        with self._lock:
            if pair_id not in self._details:
                self._details = blind_pairs(self.store, [pair_id, *self.queue.upcoming(_PREFETCH)])
            pair = self._details.get(pair_id)
        try:
            if pair is None:
                raise ImageError("missing", "the store has no row for an image")
            for image, extension in zip((pair.image_a, pair.image_b), pair.formats, strict=True):
                self.images.get(image, extension)
        except ImageError as error:
            self.excluded[f"image {error.reason}"] += 1
            self.queue.drop(pair_id)
            return None
        return pair

    # Choosing

    def choose(self, session: Session, form: dict[str, str]) -> str:
        """Write the choice that a form contains; returns a message for the person.

        Raises:
            UsageError: if the choice is unknown.
            PrefloopError, OSError: if it cannot be written; nothing has changed then.
        """
        choice = form.get("choice", "")
        if choice == "undo":
            return self._undo(session)
        if choice not in _SAVED:
            raise UsageError("choose left, right, tie, bad, skip or undo")
        notes = Notes.from_form(form)
        assignments = self.queue.assignments(session)
        if not assignments or form.get("ticket") != assignments[0].ticket:
            return "That pair is no longer assigned to you; this choice was not saved."
        assignment, labeler = assignments[0], session.labeler
        previous = self.queue.current_label(labeler, assignment.pair)
        chosen = _SIDES[choice][assignment.left] if choice in _SIDES else "tie" if notes.both_bad else choice
        kept = notes.kept_from(previous.notes) if previous and assignment.is_repeat else notes
        ms = int(form["ms"]) if _is_count(form.get("ms", "")) else None
        revision = self.queue.next_revision(labeler, assignment.pair)
        self.annotations.write(labeler, assignment.pair, revision, chosen, assignment.left, ms, kept)
        self.queue.record_answer(session, Answer(assignment, notes, previous), Label(chosen, kept))
        flagged, commented = f", flagged: {notes.flag}" * bool(notes.flag), ", with a comment" * bool(notes.comment)
        return f"Saved: {_SAVED[choice]}{flagged}{commented}."

    def _undo(self, session: Session) -> str:
        if not session.answers:
            return "There is nothing to undo."
        last, labeler = session.answers[-1], session.labeler
        revision = self.queue.next_revision(labeler, last.assignment.pair)
        self.annotations.undo(labeler, last.assignment.pair, revision, last.previous)
        self.queue.record_undo(session)
        return "Undone: choose again."

    def flush(self) -> None:
        """Take labels into the tables, and new pairs into a queue that is running out."""
        self.annotations.flush()
        if self.queue.n_open() < _PREFETCH and self.config.limit is None:
            self.queue.extend(pairs_to_label(self.store, self.config))


def _from_script(request: Request) -> bool:
    return "hx-request" in request.headers


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 12


def label_app(page: LabelPage, port: int, root: str = "") -> SecurityMiddleware:
    """The page as an ASGI application.

    Args:
        root: the URL by which other machines reach it; nothing if they cannot.
    """
    pages = Pages("prefloop label")
    cookie = cookie_name("label", port)

    def workspace(request: Request, message: str = "", status: int = 200, draft: Notes | None = None) -> Response:
        session: Session = request.state.session
        template = "workspace.html" if _from_script(request) else "label.html"
        try:
            pairs = page.pairs_for(session)
        except STORE_ERRORS as error:
            return pages.problem(request, f"{message} {sentence(error)}".strip(), 503)
        values: dict[str, Any] = {
            "question": page.config.question,
            "flags": FLAGS,
            "max_comment": MAX_COMMENT,
            "draft": draft or (pairs[0][0].draft if pairs else Notes()),
            "device_link": device_link(request),
            "labeler": session.labeler,
            "progress": page.queue.progress(session.labeler),
            "message": message,
            "is_error": status >= 400,
            "unsaved": status == 503,
            "can_undo": bool(session.answers),
            "n_assigned_to_others": page.queue.n_assigned_to_others(session),
            "pair": _by_side(*pairs[0]) if pairs else None,
            "next_pairs": [_by_side(*pair) for pair in pairs[1:]],
        }
        return pages.render(request, template, values, status)

    def device_link(request: Request) -> str:
        """A link for another device of the same person; nothing if only this machine can reach the page."""
        is_local = request.url.hostname in LOOPBACK
        if is_local and not root:
            return ""
        token = page.invites.for_device(request.state.session.labeler)
        return f"{root if is_local else request.base_url}".rstrip("/") + f"/enter?token={token}"

    def show(request: Request) -> Response:
        with request.state.session.lock:
            return workspace(request)

    def answer(request: Request) -> Response:
        session: Session = request.state.session
        with session.lock:
            try:
                message = page.choose(session, request.state.form)
            except UsageError as error:
                return workspace(request, str(error), 400, Notes.draft(request.state.form))
            except STORE_ERRORS as error:
                retry = "Retrying; leave this page open." if _from_script(request) else "Choose again later."
                return workspace(
                    request, f"Not saved yet: {sentence(error)}. {retry}", 503, Notes.draft(request.state.form)
                )
            if not _from_script(request):
                return RedirectResponse("/", 303)
            return workspace(request, message)

    def enter(request: Request) -> Response:
        return pages.enter(request, page.invites, cookie, page.open_session, named=True, question=page.config.question)

    def image(request: Request) -> Response:
        return page.images.respond(request.path_params["name"])

    routes = [
        Route("/", show, methods=["GET"]),
        Route("/answer", answer, methods=["POST"]),
        Route("/enter", enter, methods=["GET", "POST"]),
        Route("/image/{name}", image, methods=["GET"]),
        pages.static(),
    ]
    inner = Starlette(routes=routes, exception_handlers=pages.exception_handlers())
    inner.router.redirect_slashes = False
    return SecurityMiddleware(inner, page.invites, page.config, cookie, pages.unauthorized)


def _by_side(assignment: Assignment, pair: BlindPair) -> dict[str, Any]:
    images = {"a": (pair.image_a, pair.size_a), "b": (pair.image_b, pair.size_b)}
    other = {"a": "b", "b": "a"}[assignment.left]
    return {
        "ticket": assignment.ticket,
        "prompt": pair.prompt,
        "images": [
            {"side": side, "hex": image.hex, "width": width, "height": height}
            for side, (image, (width, height)) in zip(
                ("left", "right"), (images[assignment.left], images[other]), strict=True
            )
        ],
    }
