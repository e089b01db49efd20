"""Attacks on the pages; a refused one leaves the store and the session unchanged."""

import asyncio
import re
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
from content import fill
from pages import ROOT, label_server
from prefloop.relabel.annotate.browse import browse_app
from prefloop.relabel.annotate.config import BrowseConfig, ServeConfig
from prefloop.relabel.annotate.security import MAX_BODY, InviteLinks, SecurityMiddleware
from prefloop.store import PairStore
from starlette.testclient import TestClient

PAGE = Path(__file__).parents[2] / "relabel" / "annotate"
FORM = {"content-type": "application/x-www-form-urlencoded"}


@dataclass
class Site:
    """One of the two servers, with a browser that was let in and others that were not."""

    kind: str
    store: PairStore
    app: SecurityMiddleware
    tokens: list[str]
    inside: TestClient

    def stranger(self) -> TestClient:
        return browser(self.app)

    def files(self) -> dict[str, bytes]:
        """Every file of the store except its lock."""
        return {
            str(path.relative_to(self.store.path)): path.read_bytes()
            for path in sorted(self.store.path.rglob("*"))
            if path.is_file() and path.name != "store.lock"
        }


def browser(app: SecurityMiddleware) -> TestClient:
    return TestClient(app, base_url=ROOT, follow_redirects=False)


@pytest.fixture(scope="module", params=["label", "browse"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Site:
    store = PairStore.create(tmp_path_factory.mktemp(request.param) / "store")
    fill(store, n_prompts=4)
    if request.param == "label":
        server = label_server(store)
        client = server.enter().client
        return Site("label", store, client.app, [token for token, _ in server.links], client)  # type: ignore[arg-type]
    tokens: list[str] = []
    invites: InviteLinks[str] = InviteLinks(lambda token, _: tokens.append(token))
    invites.create()
    app = browse_app(BrowseConfig(), store, invites, 8420)
    client = browser(app)
    assert client.post("/enter", data={"token": tokens[0]}, headers={"origin": ROOT}).status_code == 303
    return Site("browse", store, app, tokens, client)


@pytest.fixture
def paths(site: Site) -> list[str]:
    ((pair, image),) = site.store.rows("select pair_id, image_a from pairs limit 1")
    own = (
        [
            f"/pair/{pair.hex}",
            "/runs",
            "/raters",
            "/evaluations",
            f"/thumbnail/{image.hex}",
            "/pairs?text=prompt",
            "/agreement",
        ]
        if site.kind == "browse"
        else []
    )
    return ["/", f"/image/{image.hex}", *own]


def test_a_browser_without_a_cookie_sees_nothing(site: Site, paths: list[str]):
    for path in paths:
        answer = site.stranger().get(path)
        assert answer.status_code == 401, path
        assert "prompt 0" not in answer.text
    assert site.stranger().post("/answer", data={"choice": "left"}, headers={"origin": ROOT}).status_code == 401
    forged = browser(site.app)
    forged.cookies.set(f"prefloop-{site.kind}-8420", "x" * 43)
    assert forged.get("/").status_code == 401


def test_a_link_works_once(site: Site):
    used, fresh = site.tokens[0], site.tokens[-1]
    assert used != fresh
    assert len(fresh) >= 43  # 256 bits
    answer = site.stranger().post("/enter", data={"token": used, "name": "eve"}, headers={"origin": ROOT})
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers
    for wrong in ("", "x", fresh[:-1], fresh + "x", "ü"):
        answer = site.stranger().post("/enter", data={"token": wrong, "name": "eve"}, headers={"origin": ROOT})
        assert answer.status_code == 403
    # opening it, as a chat does for a preview, does not use it up
    for _ in range(2):
        assert site.stranger().get(f"/enter?token={fresh}").status_code == 200


def test_the_cookie_is_hidden_from_scripts_and_other_sites(site: Site):
    answer = site.stranger().post("/enter", data={"token": site.tokens[-1], "name": "bob"}, headers={"origin": ROOT})
    cookie = answer.headers["set-cookie"]
    assert re.fullmatch(rf"prefloop-{site.kind}-8420=[\w-]{{43}}; HttpOnly; Path=/; SameSite=strict", cookie)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8420",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "10.0.0.1",
        "",
        "a b",
        "127.0.0.1:x",
    ],
)
def test_a_foreign_host_name_is_refused(site: Site, host: str):
    answer = site.inside.get("/", headers={"host": host})
    assert answer.status_code == 421
    assert "prompt" not in answer.text


@pytest.mark.parametrize("host", ["127.0.0.1:8420", "localhost:9000", "[::1]:8420", "LOCALHOST"])
def test_host_names_of_this_machine_are_accepted(site: Site, host: str):
    assert site.stranger().get("/", headers={"host": host}).status_code == 401


def test_configured_names_and_addresses_are_accepted():
    def middleware(config: ServeConfig) -> SecurityMiddleware:
        return SecurityMiddleware(_never, InviteLinks(lambda *_: None), config, "c", _never)

    proxied = middleware(ServeConfig(allow_hosts=("label.example",)))
    assert proxied._is_own("label.example:443")
    assert not proxied._is_own("other.example")
    everywhere = middleware(ServeConfig(host="0.0.0.0"))
    assert everywhere._is_own("192.168.1.5:8420")
    assert not everywhere._is_own("rebound.example")


def _never(*_: object) -> NoReturn:
    raise AssertionError


FOREIGN_HEADERS = [
    {},
    {"origin": "http://evil.example"},
    {"origin": "http://127.0.0.1:8421"},
    {"origin": "http://127.0.0.1"},
    {"origin": "null"},
    {"origin": "null", "sec-fetch-site": "cross-site"},
    {"origin": ROOT, "sec-fetch-site": "cross-site"},
    {"origin": ROOT, "sec-fetch-site": "same-site"},
    {"origin": ROOT, "sec-fetch-site": "none"},
    {"referer": f"{ROOT}/"},
]


@pytest.mark.parametrize("headers", FOREIGN_HEADERS, ids=str)
def test_a_request_from_another_site_is_refused(site: Site, headers: dict[str, str]):
    before = site.files()
    for path in ("/answer", "/enter"):
        sent = {"choice": "left", "token": site.tokens[-1], "name": "eve"}
        assert site.inside.post(path, data=sent, headers=headers).status_code == 403
    assert site.files() == before


@pytest.mark.parametrize("headers", [{"origin": ROOT}, {"origin": "null", "sec-fetch-site": "same-origin"}], ids=str)
def test_a_request_from_this_page_is_accepted(site: Site, headers: dict[str, str]):
    # 400 for the unknown choice: the request reached the page
    assert site.inside.post("/answer", data={"choice": "x"}, headers=headers).status_code in (400, 404)


def test_every_response_has_the_security_headers(site: Site, paths: list[str]):
    answers = [site.inside.get(path) for path in (*paths, "/static/page.js", "/nothing", "/image/x")]
    answers += [site.stranger().get("/"), site.inside.get("/", headers={"host": "evil"}), site.inside.put("/")]
    answers += [site.inside.post("/answer"), site.stranger().get(f"/enter?token={site.tokens[-1]}")]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-frame-options"] == "DENY"
        assert "server" not in answer.headers


def test_pages_have_no_inline_code_or_style(site: Site, paths: list[str]):
    texts = [site.inside.get(path).text for path in paths if "image" not in path and "thumb" not in path]
    texts += [site.stranger().get("/").text, site.stranger().get(f"/enter?token={site.tokens[-1]}").text]
    for text in texts:
        assert "<script src=" in text
        assert not re.search(r"<script(?! src=)|<style|\sstyle=|\son\w+=|javascript:|hx-on|https?://(?!127)", text)
    own = "".join(
        path.read_text()
        for path in (PAGE / "static").iterdir()
        if not path.name.startswith("htmx") and path.suffix != ".svg"
    )
    assert not re.search(r"\beval\b|new Function|innerHTML|insertAdjacent|document\.write|@import|url\(|https?://", own)


def test_a_get_request_changes_nothing(site: Site, paths: list[str]):
    before = site.files()
    for path in (*paths, "/answer", "/enter", "/static/page.css", "/?choice=left&ticket=x", "/answer?choice=undo"):
        site.inside.get(path)
        site.inside.head(path)
    assert site.files() == before


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(site: Site, method: str):
    answer = site.inside.request(method, "/", headers={"origin": ROOT})
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, POST")


def test_a_body_that_is_too_long_is_refused(site: Site):
    headers = {"origin": ROOT, **FORM}
    assert site.inside.post("/answer", content=b"a" * (MAX_BODY + 1), headers=headers).status_code == 413
    for length in ("-1", "1e3", "x"):
        answer = site.inside.post("/answer", content=b"a", headers=headers | {"content-length": length})
        assert answer.status_code == 413


def test_an_endless_body_is_not_read_beyond_the_limit(site: Site):
    n_received, sent = 0, []

    async def receive() -> dict:
        nonlocal n_received
        n_received += 1
        return {"type": "http.request", "body": b"a" * 8192, "more_body": True}

    async def send(message: MutableMapping) -> None:
        sent.append(message)

    headers = {"host": "127.0.0.1:8420", "origin": ROOT, **FORM}
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/answer",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    asyncio.run(site.app(scope, receive, send))
    assert sent[0]["status"] == 413
    assert n_received == MAX_BODY // 8192 + 1


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b'{"choice": "left"}', "application/json", 415),
        (b"choice=left", "text/plain", 415),
        (b"--x", "multipart/form-data; boundary=x", 415),
        (b"choice=left", "", 415),
        (b"choice=\xff\xfe", FORM["content-type"], 400),
        (b"&".join(b"k%d=v" % number for number in range(50)), FORM["content-type"], 400),
    ],
)
def test_only_forms_are_accepted(site: Site, content: bytes, content_type: str, status: int):
    before = site.files()
    answer = site.inside.post("/answer", content=content, headers={"origin": ROOT, "content-type": content_type})
    assert answer.status_code == status
    assert site.files() == before


@pytest.mark.parametrize(
    "name",
    [
        "../pairs.duckdb",
        "..%2fpairs.duckdb",
        "%2e%2e/%2e%2e/etc/passwd",
        "....//pairs.duckdb",
        "0" * 31,
        "0" * 33,
        "0" * 32,
        "G" * 32,
        "0" * 32 + "%00",
        "0" * 32 + "%0a",
        "٣" * 32,
        "00000000-0000-0000-0000-000000000000",
        "",
    ],
)
def test_an_invalid_id_finds_no_file(site: Site, name: str):
    for folder in ("image", "static", *(("pair", "thumbnail", "runs") if site.kind == "browse" else ())):
        answer = site.inside.get(f"/{folder}/{name}")
        assert answer.status_code == 404, (folder, name)
        assert b"root:" not in answer.content
        assert b"DUCK" not in answer.content


def test_an_invalid_id_never_reaches_the_disk(site: Site, monkeypatch: pytest.MonkeyPatch):
    def touched(*_: object, **__: object) -> None:
        raise AssertionError("touched")

    monkeypatch.setattr(PairStore, "session", touched)
    monkeypatch.setattr(PairStore, "image_path", touched)
    for name in ("0" * 31, "G" * 32, "..%2f..%2fetc%2fpasswd"):
        assert site.inside.get(f"/image/{name}").status_code == 404


def test_an_image_file_that_is_not_in_the_store_is_not_served(site: Site):
    folder = site.store.path / "images" / "ff"
    folder.mkdir(exist_ok=True)
    stray = folder / ("ff" * 16 + ".png")
    stray.write_bytes(next(site.store.path.glob("images/*/*.png")).read_bytes())
    assert site.inside.get(f"/image/{'ff' * 16}").status_code == 404
    stray.unlink()
    folder.rmdir()


def test_a_link_from_another_site_leads_to_a_reload(site: Site):
    crossed = site.stranger().get("/", headers={"sec-fetch-site": "cross-site"})
    assert crossed.status_code == 200
    assert 'http-equiv="refresh"' in crossed.text
    assert site.stranger().get("/", headers={"sec-fetch-site": "same-origin"}).status_code == 401


def test_no_web_socket_is_opened(site: Site):
    with pytest.raises(Exception), site.inside.websocket_connect("/"):  # noqa: B017, PT011  # the client's own exceptions
        pass
