"""`prefloop label`: one run of the labelling page, from its first link to its last label."""

import threading
from collections.abc import Callable
from functools import partial

from ...core.signals import StopSignal
from ...store import PairStore
from ...store.runs import run
from .app import LabelPage, label_app
from .config import LabelConfig, labeler_name
from .serve import GRACE, base_url, listen, open_browser, serve, try_or_warn, warn_if_exposed


def label(config: LabelConfig, store: PairStore, say: Callable[[str, str | None], None]) -> dict:
    """Serve the page until a signal ends it.

    Args:
        say: called with each new link, and the labeler it is for.

    Returns:
        labels (new ones by labeler, without those undone), excluded (pairs by reason).

    Raises:
        UsageError: if the queue is not a valid query or finds nothing.
        BusyError: if another process runs `label` in this store.
        PrefloopError: if the port is taken.
    """
    with store.stage_lock("label", "page"), StopSignal().listening() as stop:
        bound = listen(config)
        try:
            with run(_QuickEnd(store.path), "label", config) as this:
                root, links = base_url(config, bound), []

                def announce(token: str, name: str | None) -> None:
                    links.append(f"{root}/enter?token={token}")
                    say(links[-1], name)

                page = LabelPage(config, store, this.run_id, announce)
                warn_if_exposed(config)
                for name in config.labelers or (None,):
                    page.invites.create(name and labeler_name(name))
                open_browser(links[0])
                app = label_app(page, bound.getsockname()[1], root if config.is_exposed else "")
                serve(app, bound, stop, page.flush)
                labels = {labeler: n for labeler, n in page.annotations.counts.items() if n}
                this.summary |= {"labels": labels, "excluded": dict(page.excluded)}
        finally:
            bound.close()
    return dict(this.summary)


class _QuickEnd(PairStore):
    """A store whose last ingest does not wait for other processes: labels are safe in the journal, and any command ingests them."""

    def ingest(self, wait: float | None = None) -> int:
        ingest = partial(super().ingest, wait)
        thread = threading.Thread(target=try_or_warn, args=(ingest, "the labels are safe in the journal"), daemon=True)
        thread.start()
        thread.join(GRACE)
        return 0
