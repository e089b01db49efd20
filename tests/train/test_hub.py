"""Pushing to the hub: what is uploaded and what is refused, against a local server with the few routes of the hub that it uses."""

import base64
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import content
import pytest
from prefloop.core.hashing import RESULT_FILE, sha256
from prefloop.store import IntegrityError, PrefloopError, UsageError
from prefloop.train.export.hub import push


class Hub(ThreadingHTTPServer):
    """Records what was created and committed."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.created: list[dict] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.public_before = False
        self.refuses = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class HubHandler(BaseHTTPRequestHandler):
    server: Hub  # type: ignore[assignment]  # the server that created it

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.add(self.headers["Authorization"])
        if self.server.refuses:
            self._answer({"error": "You don't have the rights\nto create this model"}, 403)
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self._answer({"url": f"{self.server.address}/me/mine"}, 409 if self.server.public_before else 200)
        elif "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer({"commitUrl": f"{self.server.address}/me/mine/commit/1", "commitOid": "1"})
        else:
            self._answer({"errors": [], "warnings": []})

    def do_GET(self) -> None:
        if self.server.refuses:
            self._answer({"error": "Repository not found"}, 404)
            return
        if self.path == "/api/whoami-v2":
            self.server.tokens.add(self.headers["Authorization"])
            self._answer({"type": "user", "name": "me"})
            return
        private = not self.server.public_before and self.server.created[-1]["visibility"] == "private"
        self._answer({"id": "me/mine", "private": private, "sha": "1", "siblings": []})

    def _answer(self, answer: dict, status: int = 200) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """A folder with what train writes and other files that may be in it."""
    folder = tmp_path / "tuned"
    for name in (
        RESULT_FILE,
        "README.md",
        "metrics.csv",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "tokenizer/merges.txt",
        "checkpoint-100/trainable.safetensors",
        "checkpoint-100/MANIFEST.json",
        ".lock",
        ".result.tmp/unet/config.json",
        "unet/.hidden.json",
        "logs/events.json",
        "samples/face.png",
        "face.jpg",
        "optimizer.pt",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name}\n")
    (folder / "model_index.json").write_text("left by an earlier run\n")
    files = ("unet/config.json", "unet/diffusion_pytorch_model.safetensors", "tokenizer/merges.txt")
    (folder / RESULT_FILE).write_text(json.dumps({"files": {name: sha256(folder / name) for name in files}}))
    return folder


def pushed(hub: Hub, folder: Path, private: bool) -> str:
    """What push prints, or its error."""
    return printed(hub, folder, f"print(push(folder, 'me/mine', private={private}))")


def printed(hub: Hub, folder: Path, line: str) -> str:
    """What a line of code prints, or its error, in another process: the hub's client reads the address when it is imported."""
    code = (
        "import sys; from pathlib import Path; from prefloop.store import PrefloopError\n"
        "from prefloop.train.export.hub import push, refuse_unpushable; folder = Path(sys.argv[1])\n"
        f"try: {line}\n"
        "except PrefloopError as error: print(type(error).__name__, error)"
    )
    variables = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "secret", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, folder],
        env=content.environment(**variables, no_proxy="*"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("private", [True, False])
def test_only_weights_settings_tables_and_card_are_uploaded(hub: Hub, result: Path, private: bool):
    assert pushed(hub, result, private) == f"{hub.address}/me/mine\n"
    assert hub.files.keys() == {
        RESULT_FILE,
        "README.md",
        "metrics.csv",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "tokenizer/merges.txt",
    }
    assert hub.files["README.md"] == b"README.md\n"
    assert [repository["visibility"] for repository in hub.created] == ["private" if private else "public"]
    assert hub.tokens == {"Bearer secret"}


@pytest.mark.slow(reason="trains a model")
def test_a_private_push_never_uploads_to_a_public_repository(hub: Hub, result: Path):
    hub.public_before = True
    assert pushed(hub, result, private=True).startswith(f"UsageError {hub.address}/me/mine exists and is public")
    assert not hub.files
    assert pushed(hub, result, private=False) == f"{hub.address}/me/mine\n"
    assert hub.files


def test_a_refusal_by_the_hub_is_one_line_with_its_reason(hub: Hub, result: Path):
    hub.refuses = True
    (line,) = pushed(hub, result, private=True).splitlines()
    assert line.startswith(f"PrefloopError the hub refused to store {result} as me/mine: ")
    assert "You don't have the rights" in line


@pytest.mark.slow(reason="trains a model")
def test_the_login_is_checked_before_training(hub: Hub, tmp_path: Path):
    call = "refuse_unpushable('me/mine', 'tuned')"
    assert printed(hub, tmp_path, call) == ""
    assert hub.tokens == {"Bearer secret"}
    hub.refuses = True
    (line,) = printed(hub, tmp_path, call).splitlines()
    assert line.startswith("PrefloopError the hub did not accept the login: ")
    assert line.endswith(
        "run `hf auth login`, or leave out --push-to-hub, and later run `prefloop card tuned --push-to-hub me/mine`"
    )


@pytest.mark.parametrize("name", ["", "a/b/c", "has space/x", "-x", "me/../x", "https://huggingface.co/me/mine"])
def test_an_invalid_repository_name_is_refused(name: str, result: Path):
    with pytest.raises(UsageError, match="like owner/name"):
        push(result, name, private=True)


def test_a_folder_without_a_finished_result_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match=f"{RESULT_FILE} is missing"):
        push(tmp_path, "me/mine", private=True)


def test_a_result_that_has_changed_is_not_pushed(result: Path):
    (result / "unet" / "config.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"unet/config.json has changed"):
        push(result, "me/mine", private=True)


def test_without_a_token_the_error_says_how_to_log_in(result: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("prefloop.train.export.hub.get_token", lambda: None)
    with pytest.raises(PrefloopError, match="hf auth login"):
        push(result, "me/mine", private=True)


def test_an_unreachable_hub_is_reported_within_five_seconds(result: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("prefloop.train.export.hub.get_token", lambda: "secret")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    began = time.monotonic()
    with pytest.raises(PrefloopError, match="cannot be reached"):
        push(result, "me/mine", private=True)
    assert time.monotonic() - began < 5
