"""A page's server: this process until it is told to end."""

import asyncio
import os
import socket
import sys
import time
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from ...store import PrefloopError
from ...store.runs import StopSignal
from .config import LOOPBACK, ServeConfig

_EVERY = 10.0
"""Seconds between two times of tidying up."""


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
    """Answer until a signal comes.

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

    async def watch() -> None:
        last = time.monotonic()
        while not stop.requested:
            await asyncio.sleep(0.1)
            if tidy and time.monotonic() - last > _EVERY:
                await asyncio.to_thread(_tried, tidy)
                last = time.monotonic()
        server.should_exit = True

    async def run() -> None:
        watching = asyncio.create_task(watch())
        await server.serve(sockets=[bound])
        await watching

    asyncio.run(run())


def _tried(tidy: Callable[[], None]) -> None:
    try:
        tidy()
    except PrefloopError as error:
        print(f"prefloop: {error}; tried again in {_EVERY:.0f} s", file=sys.stderr)


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
