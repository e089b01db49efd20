"""One progress bar, without those of the libraries."""

import sys


def quiet_libraries() -> None:
    """Silence the progress bars and advice of loaded libraries, so that a stage shows only its own bar."""
    import logging
    import warnings

    for name in ("diffusers", "transformers"):
        if name in sys.modules:
            sys.modules[name].utils.logging.disable_progress_bar()
            sys.modules[name].utils.logging.set_verbosity_error()
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns on the root logger
    warnings.filterwarnings("ignore", category=FutureWarning)


def progress(total: int, what: str, initial: int = 0):
    """A progress bar on stderr; if that is not a terminal, a line every 30 seconds."""
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=initial,
        desc=what,
        file=sys.stderr,
        mininterval=0.2 if terminal else 30,
        miniters=None if terminal else 1,
        maxinterval=10 if terminal else 30,
        dynamic_ncols=terminal,
    )
