"""A server of scores whose answers a test writes: each is a status, headers and a body."""

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prefloop.relabel.remote.messages import parse_request

Reply = tuple[int, dict[str, str], Any]
ABOUT: dict[str, Any] = {"name": "far", "revision": "1", "needs_prompt": False}


def redness(body: dict) -> Any:
    """The mean of red of each image."""
    images = parse_request(json.dumps(body).encode(), with_tags=False).images
    return [image.resize((1, 1)).getpixel((0, 0))[0] for image in images]  # type: ignore[index]  # of RGB


class ScriptedServer:
    """GET gives `about`, POST what `reply` makes of the body; `first` replies come before either."""

    def __init__(self) -> None:
        self.about: Any = ABOUT
        self.reply: Callable[[dict], Reply] = lambda body: (200, {}, {"scores": redness(body), "revision": "1"})
        self.first: list[Reply] = []
        self.bodies: list[dict] = []
        self.tokens: list[str | None] = []
        self.paths: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.tokens.append(self.headers["Authorization"])
                server.paths.append(self.path)
                self.answer(*(server.first.pop(0) if server.first else (200, {}, server.about)))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.paths.append(self.path)
                if server.first:
                    self.answer(*server.first.pop(0))
                    return
                server.bodies.append(body)
                self.answer(*server.reply(body))

            def answer(self, status: int, headers: dict[str, str], body: Any) -> None:
                if status == 0:  # hang up
                    self.connection.close()
                    return
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(data))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                with suppress(BrokenPipeError, ConnectionResetError):  # the client has read enough
                    self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/score"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
