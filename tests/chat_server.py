"""A chat endpoint for tests, which answers as it is told and can misbehave in every way."""

import base64
import io
import json
import math
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image


@dataclass
class Asked:
    """A request as the endpoint received it."""

    body: dict[str, Any]
    key: str | None
    texts: list[str] = field(default_factory=list)
    reds: list[float] = field(default_factory=list)
    """The mean redness of each image."""


@dataclass
class Said:
    """An answer of the endpoint."""

    content: Any = ""
    """Of the message; anything else that JSON holds for a misbehaving endpoint."""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    """The whole answer, text or JSON, in place of a chat completion."""
    top: Mapping[str, float] | None = None
    """Probabilities of the first token."""
    usage: Mapping[str, float] | None = None
    cut: int = 0
    """Bytes after which the connection is closed, though more are promised."""
    model: str = "little-1"


class ChatServer:
    def __init__(self) -> None:
        self.answer: Callable[[Asked], Said] = redder
        self.asked: list[Asked] = []
        self._lock = threading.Lock()
        self.open_now = self.most_open = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked = Asked(body, self.headers["Authorization"])
                for part in body["messages"][-1]["content"]:
                    if part["type"] == "text":
                        asked.texts.append(part["text"])
                    else:
                        asked.reds.append(red(part["image_url"]["url"]))
                with server._lock:
                    server.asked.append(asked)
                    server.open_now += 1
                    server.most_open = max(server.most_open, server.open_now)
                try:
                    self.reply(server.answer(asked))
                finally:
                    with server._lock:
                        server.open_now -= 1

            def reply(self, said: Said) -> None:
                data = (said.body if isinstance(said.body, str) else json.dumps(_completion(said))).encode()
                with suppress(ConnectionError):  # who has timed out is gone
                    self.send_response(said.status)
                    for name, value in said.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data[: said.cut] if said.cut else data)
                if said.cut:
                    self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def redder(asked: Asked) -> Said:
    """Prefers the redder of two images; of one, how red it is."""
    if len(asked.reds) == 1:
        return Said(f"Score: {asked.reds[0]:.0f}")
    first, second = asked.reds
    return Said("Tie." if first == second else "First." if first > second else "Second.")


def red(url: str) -> float:
    head, data = url.split(",")
    assert head == "data:image/png;base64"
    return float(np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))[..., 0].mean())


def _completion(said: Said) -> Any:
    if said.body is not None:
        return said.body
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": said.content}, "finish_reason": "stop"}
    if said.top is not None:
        top = [{"token": token, "logprob": math.log(p)} for token, p in said.top.items()]
        choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
    completion: dict[str, Any] = {"model": said.model, "choices": [choice]}
    return completion if said.usage is None else {**completion, "usage": dict(said.usage)}
