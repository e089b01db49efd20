"""A page's server: this process until it is told to end."""

import asyncio
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import uvicorn
from starlette.types import ASGIApp

from ...core.signals import StopSignal
from ...core.text import visible
from ...store import PrefloopError
from .config import LOOPBACK, ServeConfig

EVERY = 10.0
"""Seconds between two times of tidying up."""
LAST = 5.0
"""Seconds that what is under way has once a signal came."""


class _Server(uvicorn.Server):
    """Leaves signals to whoever runs it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listening(config: ServeConfig) -> socket.socket:
    """The socket, open to browsers from now on.

    Raises:
        PrefloopError: where the port is taken, or the host is not of this machine.
    """
    try:
        family = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0][0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((config.host, config.port))
        bound.listen(128)
    except OSError as error:
        raise PrefloopError(
            f"cannot listen on port {config.port} of {config.host}: {error.strerror}; "
            "give --port another number, or 0 for any that is free"
        ) from error
    return bound


def address(config: ServeConfig, bound: socket.socket) -> str:
    """Where browsers find it."""
    host = socket.gethostname() if config.host in ("0.0.0.0", "::") else config.host
    return f"http://{f'[{host}]' if ':' in host else host}:{bound.getsockname()[1]}"


def serve(app: ASGIApp, bound: socket.socket, stop: StopSignal, tidy: Callable[[], None] | None = None) -> None:
    """Answer until a signal comes. Whatever a request or `tidy` waits for then, this returns within seconds.

    Args:
        tidy: called now and then in a thread; what it cannot do now is left for the next time.
    """
    server = _Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
            lifespan="off",
            timeout_graceful_shutdown=3,
            proxy_headers=False,
        )
    )
    problems: list[BaseException] = []

    def answer() -> None:
        try:
            asyncio.run(server.serve(sockets=[bound]))
        except BaseException as error:
            problems.append(error)

    # daemons, as are the threads that they start: one that waits for a lock does not keep the process
    answering = threading.Thread(target=answer, daemon=True)
    ended = threading.Event()
    answering.start()
    if tidy:
        threading.Thread(target=_now_and_then, args=(tidy, ended), daemon=True).start()
    while answering.is_alive() and not stop.requested:
        answering.join(0.1)
    ended.set()
    server.should_exit = True
    answering.join(LAST)
    if problems:
        raise problems[0]


def _now_and_then(tidy: Callable[[], None], ended: threading.Event) -> None:
    while not ended.wait(EVERY):
        tried(tidy, f"tried again in {EVERY:.0f} s")


def tried(call: Callable[[], object], otherwise: str) -> None:
    """Do something that can also be done later; where it fails, one line on stderr says why."""
    try:
        call()
    except Exception as error:  # whatever it is: the page goes on
        reason = " ".join(str(error).split()) or type(error).__name__
        with suppress(OSError):  # stderr may be a file of the same full disk
            print(f"prefloop: {visible(reason)}; {otherwise}", file=sys.stderr, flush=True)


def warn_of_network(config: ServeConfig) -> None:
    if config.host not in LOOPBACK:
        message = (
            "whoever shares this network can read along: nothing is encrypted; an ssh tunnel to 127.0.0.1 is safer"
        )
        print(f"prefloop: {message}", file=sys.stderr)


def open_browser(link: str) -> None:
    """Where there is a screen before a person."""
    screen = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if screen and sys.stdout.isatty() and "SSH_CONNECTION" not in os.environ:
        webbrowser.open(link)
