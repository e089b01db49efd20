"""`prefloop label`: one run of the labelling page, from its first link to its last label."""

import threading
from collections.abc import Callable
from functools import partial

from ...core.signals import StopSignal
from ...store import PairStore
from ...store.runs import run
from .app import LabelPage, label_app
from .config import LabelConfig, labeler_name
from .serve import LAST, address, listening, open_browser, serve, tried, warn_of_network


def label(config: LabelConfig, store: PairStore, say: Callable[[str, str | None], None]) -> dict:
    """Serve the page until a signal ends it.

    Args:
        say: told each link that works now, and the labeler it is for.

    Returns:
        labels (those that stand, by labeler), left_out (pairs, by reason).

    Raises:
        UsageError: where the queue is no query or finds nothing.
        BusyError: where another process labels in this store.
        PrefloopError: where the port is taken.
    """
    with store.stage_lock("label", "page"), StopSignal().listening() as stop:
        bound = listening(config)
        try:
            with run(_Ending(store.path), "label", config) as this:
                root, links = address(config, bound), []

                def announce(token: str, name: str | None) -> None:
                    links.append(f"{root}/enter?token={token}")
                    say(links[-1], name)

                page = LabelPage(config, store, this.run_id, announce)
                warn_of_network(config)
                for name in config.labelers or (None,):
                    page.door.invite(name and labeler_name(name))
                open_browser(links[0])
                serve(label_app(page, bound.getsockname()[1]), bound, stop, page.settle)
                labels = {labeler: n for labeler, n in page.answers.counts.items() if n}
                this.summary |= {"labels": labels, "left_out": dict(page.left_out)}
        finally:
            bound.close()
    return dict(this.summary)


class _Ending(PairStore):
    """The store as a run has it whose end waits for nobody: what is in the journal is safe, and is taken in by any command."""

    def ingest(self, wait: float | None = None) -> int:
        absorb = partial(super().ingest, wait)
        ending = threading.Thread(target=tried, args=(absorb, "the labels are in the journal"), daemon=True)
        ending.start()
        ending.join(LAST)
        return 0
