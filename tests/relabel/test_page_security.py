"""Each attack on the pages is tried; a refused one leaves the store and the session as they were."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from content import fill
from pages import ROOT, office
from prefloop.relabel.annotate.browse import browse_app
from prefloop.relabel.annotate.config import BrowseConfig, ServeConfig
from prefloop.relabel.annotate.security import MOST_BODY, Door, Guard
from prefloop.store import PairStore
from starlette.testclient import TestClient

PAGE = Path(__file__).parents[2] / "relabel" / "annotate"
FORM = {"content-type": "application/x-www-form-urlencoded"}


@dataclass
class Site:
    """One of the two servers, with a browser that was let in and one that was not."""

    kind: str
    store: PairStore
    app: Guard
    tokens: list[str]
    inside: TestClient

    def stranger(self) -> TestClient:
        return browser(self.app)

    def files(self) -> dict[str, bytes]:
        """Everything of the store but its lock."""
        return {
            str(path.relative_to(self.store.path)): path.read_bytes()
            for path in sorted(self.store.path.rglob("*"))
            if path.is_file() and path.name != "store.lock"
        }


def browser(app: Guard) -> TestClient:
    return TestClient(app, base_url=ROOT, follow_redirects=False)


@pytest.fixture(scope="module", params=["label", "browse"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Site:
    store = PairStore.create(tmp_path_factory.mktemp(request.param) / "store")
    fill(store, n_prompts=4)
    if request.param == "label":
        place = office(store)
        client = place.enter().client
        return Site("label", store, client.app, [token for token, _ in place.links], client)  # type: ignore[arg-type]
    tokens: list[str] = []
    door: Door[str] = Door(lambda token, _: tokens.append(token))
    door.invite()
    app = browse_app(BrowseConfig(), store, door, 8420)
    client = browser(app)
    assert client.post("/enter", data={"token": tokens[0]}, headers={"origin": ROOT}).status_code == 303
    return Site("browse", store, app, tokens, client)


@pytest.fixture
def paths(site: Site) -> list[str]:
    ((pair, image),) = site.store.rows("select pair_id, image_a from pairs limit 1")
    own = [f"/pair/{pair.hex}", "/runs", f"/thumbnail/{image.hex}", "/?text=prompt"] if site.kind == "browse" else []
    return ["/", f"/image/{image.hex}", *own]


def test_whoever_has_no_cookie_sees_nothing(site: Site, paths: list[str]):
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
    # looking at it, as the preview of a chat does, does not use it up
    for _ in range(2):
        assert site.stranger().get(f"/enter?token={fresh}").status_code == 200


def test_the_cookie_is_for_this_site_and_no_script(site: Site):
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
def test_a_name_that_is_not_this_servers_is_refused(site: Site, host: str):
    answer = site.inside.get("/", headers={"host": host})
    assert answer.status_code == 421
    assert "prompt" not in answer.text


@pytest.mark.parametrize("host", ["127.0.0.1:8420", "localhost:9000", "[::1]:8420", "LOCALHOST"])
def test_this_machines_own_names_are_answered(site: Site, host: str):
    assert site.stranger().get("/", headers={"host": host}).status_code == 401


def test_names_and_addresses_that_were_asked_for_are_answered():
    guard: Callable[[ServeConfig], Guard] = lambda config: Guard(_never, Door(lambda *_: None), config, "c", _never)  # noqa: E731
    proxied = guard(ServeConfig(allow_hosts=("label.example",)))
    assert proxied._is_own("label.example:443")
    assert not proxied._is_own("other.example")
    everywhere = guard(ServeConfig(host="0.0.0.0"))
    assert everywhere._is_own("192.168.1.5:8420")
    assert not everywhere._is_own("rebound.example")


async def _never(*_: object) -> None:
    raise AssertionError


SENT_BY_OTHERS = [
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


@pytest.mark.parametrize("headers", SENT_BY_OTHERS, ids=str)
def test_what_another_site_has_a_browser_send_is_refused(site: Site, headers: dict[str, str]):
    before = site.files()
    for path in ("/answer", "/enter"):
        sent = {"choice": "left", "token": site.tokens[-1], "name": "eve"}
        assert site.inside.post(path, data=sent, headers=headers).status_code == 403
    assert site.files() == before


@pytest.mark.parametrize("headers", [{"origin": ROOT}, {"origin": "null", "sec-fetch-site": "same-origin"}], ids=str)
def test_what_this_page_sends_is_taken(site: Site, headers: dict[str, str]):
    # the form lacks a choice: it came as far as the page
    assert site.inside.post("/answer", data={"choice": "x"}, headers=headers).status_code in (400, 404)


def test_every_answer_has_the_headers_that_keep_others_out(site: Site, paths: list[str]):
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


def test_no_page_has_code_or_style_within(site: Site, paths: list[str]):
    texts = [site.inside.get(path).text for path in paths if "image" not in path and "thumb" not in path]
    texts += [site.stranger().get("/").text, site.stranger().get(f"/enter?token={site.tokens[-1]}").text]
    for text in texts:
        assert "<script src=" in text
        assert not re.search(r"<script(?! src=)|<style|\sstyle=|\son\w+=|javascript:|hx-on|https?://(?!127)", text)
    own = "".join(path.read_text() for path in (PAGE / "static").glob("page.*"))
    assert not re.search(r"\beval\b|new Function|innerHTML|insertAdjacent|document\.write|@import|url\(|https?://", own)


def test_looking_changes_nothing(site: Site, paths: list[str]):
    before = site.files()
    for path in (*paths, "/answer", "/enter", "/static/page.css", "/?choice=left&ticket=x", "/answer?choice=undo"):
        site.inside.get(path)
        site.inside.head(path)
    assert site.files() == before


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(site: Site, method: str):
    answer = site.inside.request(method, "/", headers={"origin": ROOT})
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, POST")


def test_a_body_that_is_too_long_is_refused_before_it_is_read(site: Site):
    pieces: list[int] = []

    def endless():
        for number in range(1000):
            pieces.append(number)
            yield b"a" * 8192

    headers = {"origin": ROOT, **FORM}
    assert site.inside.post("/answer", content=b"a" * (MOST_BODY + 1), headers=headers).status_code == 413
    assert site.inside.post("/answer", content=endless(), headers=headers).status_code == 413
    for length in ("-1", "1e3", "x"):
        answer = site.inside.post("/answer", content=b"a", headers=headers | {"content-length": length})
        assert answer.status_code == 413


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
def test_what_is_no_form_is_refused(site: Site, content: bytes, content_type: str, status: int):
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
def test_an_id_that_is_none_finds_no_file(site: Site, name: str):
    for folder in ("image", "static", *(("pair", "thumbnail", "runs") if site.kind == "browse" else ())):
        answer = site.inside.get(f"/{folder}/{name}")
        assert answer.status_code == 404, (folder, name)
        assert b"root:" not in answer.content
        assert b"DUCK" not in answer.content


def test_an_id_is_matched_before_the_disk_is_touched(site: Site, monkeypatch: pytest.MonkeyPatch):
    def touched(*_: object, **__: object) -> None:
        raise AssertionError("touched")

    monkeypatch.setattr(PairStore, "session", touched)
    monkeypatch.setattr(PairStore, "image_path", touched)
    for name in ("0" * 31, "G" * 32, "..%2f..%2fetc%2fpasswd"):
        assert site.inside.get(f"/image/{name}").status_code == 404


def test_a_picture_the_store_does_not_know_is_not_served(site: Site):
    folder = site.store.path / "images" / "ff"
    folder.mkdir(exist_ok=True)
    stray = folder / ("ff" * 16 + ".png")
    stray.write_bytes(next(site.store.path.glob("images/*/*.png")).read_bytes())
    assert site.inside.get(f"/image/{'ff' * 16}").status_code == 404
    stray.unlink()
    folder.rmdir()


def test_a_link_from_another_site_is_followed_once_more_from_here(site: Site):
    crossed = site.stranger().get("/", headers={"sec-fetch-site": "cross-site"})
    assert crossed.status_code == 200
    assert 'http-equiv="refresh"' in crossed.text
    assert site.stranger().get("/", headers={"sec-fetch-site": "same-origin"}).status_code == 401


def test_no_web_socket_is_opened(site: Site):
    with pytest.raises(Exception), site.inside.websocket_connect("/"):  # noqa: B017, PT011  # the client's own kinds
        pass
