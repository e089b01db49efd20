"""The server of a page; it runs until a signal ends it."""

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
from .config import EVERYWHERE, LOOPBACK, ServeConfig

FLUSH_INTERVAL = 10.0
"""Seconds between two calls of `flush`."""
GRACE = 5.0
"""Seconds that requests in progress may take after a signal."""


class _Server(uvicorn.Server):
    """Leaves signals to the caller."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(config: ServeConfig) -> socket.socket:
    """A socket that accepts connections from now on.

    Raises:
        PrefloopError: if the port is taken, or the host is not an address of this machine.
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
            "give --port another number, or 0 for a free one"
        ) from error
    return bound


def base_url(config: ServeConfig, bound: socket.socket) -> str:
    """The URL for browsers, without a path."""
    host = network_address() if config.host in EVERYWHERE else config.host
    return f"http://{f'[{host}]' if ':' in host else host}:{bound.getsockname()[1]}"


def network_address() -> str:
    """This machine's address for others on its network, such as a phone; 127.0.0.1 without a network. Nothing is sent."""
    # connecting a datagram socket only chooses the interface; the targets are reserved for documentation
    for family, target in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((target, 9))
            return probe.getsockname()[0]
    return LOOPBACK[0]


def serve(app: ASGIApp, bound: socket.socket, stop: StopSignal, flush: Callable[[], None] | None = None) -> None:
    """Serve until a signal comes. Whatever a request or `flush` is waiting for then, this returns within seconds.

    Args:
        flush: called at intervals in a thread; if it fails, the next call tries again.
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
    errors: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(server.serve(sockets=[bound]))
        except BaseException as error:
            errors.append(error)

    # daemon threads, as are the ones they start: a thread that waits for a lock does not keep the process alive
    serving = threading.Thread(target=run, daemon=True)
    ended = threading.Event()
    serving.start()
    if flush:
        threading.Thread(target=_call_at_intervals, args=(flush, ended), daemon=True).start()
    while serving.is_alive() and not stop.requested:
        serving.join(0.1)
    ended.set()
    server.should_exit = True
    serving.join(GRACE)
    if errors:
        raise errors[0]


def _call_at_intervals(flush: Callable[[], None], ended: threading.Event) -> None:
    while not ended.wait(FLUSH_INTERVAL):
        try_or_warn(flush, f"trying again in {FLUSH_INTERVAL:.0f} s")


def try_or_warn(call: Callable[[], object], consequence: str) -> None:
    """Do something that can also be done later; if it fails, print one line to stderr."""
    try:
        call()
    except Exception as error:  # whatever it is, the page keeps running
        reason = " ".join(str(error).split()) or type(error).__name__
        with suppress(OSError):  # stderr may be a file on the same full disk
            print(f"prefloop: {visible(reason)}; {consequence}", file=sys.stderr, flush=True)


def warn_if_exposed(config: ServeConfig) -> None:
    if config.is_exposed:
        message = (
            "others on this network can read everything: nothing is encrypted; an ssh tunnel to 127.0.0.1 is safer"
        )
        print(f"prefloop: {message}", file=sys.stderr)


def open_browser(link: str) -> None:
    """Open the link in a browser, if a person runs this on a desktop."""
    screen = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if screen and sys.stdout.isatty() and "SSH_CONNECTION" not in os.environ:
        webbrowser.open(link)
