"""Published prompt sets: read as they are published, fetched once, verified, and never mistaken for a file."""

import dataclasses
import hashlib
import io
import json
import os
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from content import prefloop
from prefloop.cli import app
from prefloop.core.errors import IntegrityError, PrefloopError, UsageError
from prefloop.generate import GenerateConfig, Prompt, read_prompts
from prefloop.generate.prompt_sets.files import cached_files, find_files, hash_of, local_files, set_rows
from prefloop.generate.prompt_sets.known import KNOWN
from prefloop.generate.prompt_sets.record import PromptSet
from prefloop.generate.prompt_sets.registry import prompt_set, set_names
from prefloop.generate.prompts import find_prompts
from prefloop.generate.stage import generate
from prefloop.store import PairStore
from typer.testing import CliRunner

Rows = list[tuple[str, dict[str, str]]]
MINI = "a red circle\na blue square\n"
REVISION = "0123456789abcdef0123456789abcdef01234567"


def small(name: str, n_prompts: int) -> PromptSet:
    """A set as published, of which the test has made a copy with fewer prompts."""
    return dataclasses.replace(prompt_set(name), n_prompts=n_prompts, sha256=None)


def rows_of(chosen: PromptSet, path: Path) -> Rows:
    return [(text, tags) for _, text, tags in set_rows(chosen, local_files(chosen, path)) if text.strip()]


def digest(text: str | bytes) -> str:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def mini(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "name": "mini",
        "source": "https://example.invalid/{revision}",
        "files": ("lists/mini.txt",),
    }
    return fields | {"n_prompts": 2, "sha256": digest(MINI), "revision": REVISION} | changes


# The sets as published


def test_parti_is_a_table_whose_category_and_challenge_are_tags(tmp_path: Path):
    path = tmp_path / "PartiPrompts.tsv"
    path.write_text('Prompt\tCategory\tChallenge\tNote\na bowl\tFood\tBasic\tround\n"Night" by hand\tArts\tStyle\t\n')
    expected = [
        ("a bowl", {"Category": "Food", "Challenge": "Basic"}),
        ('"Night" by hand', {"Category": "Arts", "Challenge": "Style"}),
    ]
    assert rows_of(small("parti", 2), path) == expected
    assert rows_of(small("parti", 2), tmp_path) == expected  # the folder that holds it


def test_geneval_has_one_tag_and_leaves_out_what_a_detector_should_find(tmp_path: Path):
    path = tmp_path / "evaluation_metadata.jsonl"
    row = {"tag": "counting", "include": [{"class": "cow", "count": 2}], "exclude": [], "prompt": "two cows"}
    path.write_text(json.dumps(row) + "\n")
    assert rows_of(small("geneval", 1), path) == [("two cows", {"tag": "counting"})]


def test_dpg_is_a_folder_with_a_prompt_in_each_file(tmp_path: Path):
    for name, text in (("vrd7", "A long scene."), ("12", "Another one.\n")):
        (tmp_path / f"{name}.txt").write_text(text)
    assert rows_of(small("dpg", 2), tmp_path) == [("Another one.", {}), ("A long scene.", {})]


def test_t2i_compbench_is_eight_files_named_by_category(tmp_path: Path):
    names = ("3d_spatial", "color", "complex", "non_spatial", "numeracy", "shape", "spatial", "texture")
    for name in names:
        (tmp_path / f"{name}_val.txt").write_text(f"one of {name}\r\n")
        (tmp_path / f"{name}_train.txt").write_text("not of the set\n")
    assert rows_of(small("t2i-compbench", 8), tmp_path) == [(f"one of {name}", {"category": name}) for name in names]
    (tmp_path / "shape_val.txt").unlink()
    with pytest.raises(
        UsageError, match=r"not a copy of the prompt set t2i-compbench: it must hold 3d_spatial_val\.txt, "
    ):
        local_files(small("t2i-compbench", 8), tmp_path)


def test_drawbench_has_its_categories_by_name(tmp_path: Path):
    labels = {"_type": "ClassLabel", "names": ["Colors", "Text"]}
    metadata = {"huggingface": json.dumps({"info": {"features": {"category": labels, "prompts": {"_type": "Value"}}}})}
    table = pa.table({"prompts": ["a red cube", "a sign"], "category": [0, 1]}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "drawbench.parquet")
    (tmp_path / "sheet.csv").write_text("Prompts,Category\na red cube,Colors\na sign,Text\n")
    expected = [("a red cube", {"category": "Colors"}), ("a sign", {"category": "Text"})]
    for name in ("drawbench.parquet", "sheet.csv"):
        assert rows_of(small("drawbench", 2), tmp_path / name) == expected


def test_hpsv2_is_four_lists_whose_style_is_a_tag(tmp_path: Path):
    (tmp_path / "benchmark").mkdir()
    for style in ("photo", "anime", "paintings", "concept-art"):
        (tmp_path / "benchmark" / f"{style}.json").write_text(json.dumps(["a cat", f"{style} of a dog"]))
    for folder in (tmp_path, tmp_path / "benchmark"):
        rows = rows_of(small("hpsv2", 8), folder)
        assert len(rows) == 8
        assert rows[:3] == [
            ("a cat", {"style": "anime"}),
            ("anime of a dog", {"style": "anime"}),
            ("a cat", {"style": "concept-art"}),
        ]


@pytest.mark.parametrize("name", ["pickapic-test", "pickapic-validation"])
def test_prompts_of_pick_a_pic_are_its_captions(tmp_path: Path, name: str):
    table = pa.table({"caption": ["a cat"], "label_0": [0.5], "jpg_0": [b"\xff\xd8"], "user_id": [3]})
    pq.write_table(table, tmp_path / "some.parquet")
    assert rows_of(small(name, 1), tmp_path / "some.parquet") == [("a cat", {})]


def test_each_known_set_has_a_pinned_revision_and_a_name_that_no_prompt_file_can_have():
    assert [known.name for known in KNOWN] == [
        *("parti", "geneval", "dpg", "t2i-compbench", "drawbench", "hpsv2", "pickapic-test", "pickapic-validation")
    ]
    for known in KNOWN:
        assert not Path(known.name).suffix
        assert len(known.revision or "") == 40
        assert known.on_hub or str(known.revision) in known.address, known.name


# Copies that the user has


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts a package whose entry points are prompt sets on this process's path; gives the folder that it is in."""

    def installed(*sets: dict[str, Any], code: str | None = None, names: tuple[str, ...] = ()) -> Path:
        site, module = tmp_path / "site", f"sets_{digest(str(tmp_path))[:8]}"
        info = site / "more_prompts-1.0.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        points = {fields["name"]: f"{module}:SETS_{number}" for number, fields in enumerate(sets)}
        points |= dict.fromkeys(names, f"{module}:SETS_0")
        lines = [f"{name} = {value}\n" for name, value in points.items()]
        (info / "entry_points.txt").write_text("[prefloop.prompt_sets]\n" + "".join(lines))
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: more-prompts\nVersion: 1.0\n")
        made = "".join(f"SETS_{number} = PromptSet(**{fields!r})\n" for number, fields in enumerate(sets))
        text = code or "from prefloop.generate.prompt_sets.record import PromptSet\n" + made
        (site / f"{module}.py").write_text(text)
        monkeypatch.syspath_prepend(site)
        return site

    return installed


def test_a_copy_is_read_by_name_and_only_the_published_bytes_have_its_revision(
    tmp_path: Path, install: Callable[..., Path]
):
    install(mini())
    copy, other = tmp_path / "copy.txt", tmp_path / "other.txt"
    copy.write_text(MINI)
    other.write_text(MINI.replace("red", "green"))
    assert read_prompts(f"mini={copy}") == [Prompt("a red circle"), Prompt("a blue square")]
    assert read_prompts(f"mini={copy}", limit=1) == [Prompt("a red circle")]
    assert find_prompts(f"mini={copy}").identity() == {"name": "mini", "revision": REVISION, "sha256": digest(MINI)}
    assert find_prompts(f"mini={other}").identity() == {
        "name": "mini",
        "revision": None,
        "sha256": digest(MINI.replace("red", "green")),
    }


def test_a_copy_with_another_number_of_prompts_is_refused(tmp_path: Path, install: Callable[..., Path]):
    install(mini())
    path = tmp_path / "one.txt"
    path.write_text("a red circle\n\n")
    with pytest.raises(UsageError, match=rf"it holds 1 prompts, not 2; to use them as they are, give --prompts {path}"):
        read_prompts(f"mini={path}")
    with pytest.raises(UsageError, match=r"gone is not a file; name the file of the prompt set mini"):
        read_prompts(f"mini={tmp_path / 'gone'}")


def test_the_first_of_equal_prompts_gives_the_tags(tmp_path: Path, install: Callable[..., Path]):
    install(mini(files=("b/photo.txt", "a/anime.txt"), n_prompts=3, sha256=None, file_tag="style"))
    (tmp_path / "photo.txt").write_text("a cat\n")
    (tmp_path / "anime.txt").write_text("a cat\na dog\n")
    assert read_prompts(f"mini={tmp_path}") == [
        Prompt("a cat", {"style": "photo"}),
        Prompt("a dog", {"style": "anime"}),
    ]


def test_the_hash_of_several_files_is_that_of_the_lines_of_sha256sum(tmp_path: Path):
    paths = [tmp_path / "b.txt", tmp_path / "a.txt"]
    for path in paths:
        path.write_text(path.stem)
    lines = f"{digest('a')}  a.txt\n{digest('b')}  b.txt\n"
    assert hash_of(paths) == digest(lines)
    assert hash_of(paths[:1]) == digest("b")


# Files of that name, unknown names


def test_a_file_with_the_name_of_a_set_is_not_taken_for_the_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install: Callable[..., Path]
):
    install(mini())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for name in ("mini", "mini.txt", "mini=copy.txt"):
        Path(name).write_text("from the file\n")
    assert read_prompts("mini.txt") == [Prompt("from the file")]
    assert read_prompts("./mini=copy.txt") == [Prompt("from the file")]
    with pytest.raises(PrefloopError, match="cannot fetch the prompt set mini"):
        read_prompts("mini")


def test_an_unknown_name_is_answered_with_files_and_sets(install: Callable[..., Path]):
    install(mini())
    with pytest.raises(
        UsageError, match=r"prompt file partj not found; name a file, or one of shapes, .*parti, .*mini$"
    ):
        read_prompts("partj")
    with pytest.raises(UsageError, match=r"unknown prompt set 'partj'; choose from parti, geneval"):
        prompt_set("partj")


# Sets of other packages


def test_a_package_adds_a_set_but_cannot_replace_one(install: Callable[..., Path]):
    install(mini(), mini(name="parti"))
    assert set_names() == [*(known.name for known in KNOWN), "mini"]
    assert prompt_set("mini").n_prompts == 2
    assert prompt_set("parti").n_prompts == 1632


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise ImportError('no numpy here')", "'odd' of .*SETS_0 cannot be imported: no numpy here"),
        ("SETS_0 = {'name': 'odd'}", "SETS_0 is not a PromptSet with the name 'odd'"),
    ],
)
def test_a_package_that_gives_no_set_is_named_and_does_not_hide_the_others(
    install: Callable[..., Path], code: str, message: str
):
    install(code=code, names=("odd",))
    with pytest.raises(UsageError, match=message):
        prompt_set("odd")
    listed = CliRunner().invoke(app, ["prompts", "ls"])
    assert listed.exit_code == 0
    assert "odd                  cannot be loaded" in listed.stdout
    assert "parti                 1632 prompts  Category, Challenge" in listed.stdout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "mini.txt"}, "must be of letters"),
        ({"files": ()}, "names no files"),
        ({"files": ("../x.txt",)}, "outside of its source"),
        ({"files": ("a/x.txt", "b/x.txt")}, "two files of the prompt set mini have the same name"),
        ({"n_prompts": 0}, "at least one prompt"),
        ({"source": "file:///etc"}, "must be a data set on the hub or an https address"),
        ({"source": "http://example.invalid", "sha256": None}, "http only with a sha256"),
        ({"source": "owner/name", "archive": True}, "must be a data set on the hub or an https address"),
    ],
)
def test_a_record_that_cannot_be_right_is_refused(changes: dict, message: str):
    with pytest.raises(UsageError, match=message):
        PromptSet(**mini(**changes))


# Fetching from an address


class Site(ThreadingHTTPServer):
    """Serves files, and remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), SiteHandler)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class SiteHandler(BaseHTTPRequestHandler):
    server: Site  # type: ignore[assignment]  # the server that created it

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        self.server.asked.append(self.path)
        data = self.server.files.get(self.path)
        self.send_response(404 if data is None else 200)
        if data is not None:  # what the client of the hub looks at
            self.send_header("ETag", f'"{digest(data)}"')
            self.send_header("X-Repo-Commit", REVISION)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        if body:
            self.wfile.write(data or b"")

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    server = Site()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def in_cache(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "home").rglob("*") if path.is_file())


def test_a_set_is_fetched_once_and_then_read_without_network(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    chosen = PromptSet(**mini(source=f"{site.address}/{{revision}}"))
    site.files[f"/{REVISION}/lists/mini.txt"] = MINI.encode()
    assert cached_files(chosen) is None
    (path,) = find_files(chosen)
    assert path.read_text() == MINI
    assert path.is_relative_to(tmp_path / "home" / "prefloop" / "prompts")
    assert capsys.readouterr().err == f"fetching the prompt set mini from {site.address}/{REVISION}/lists/mini.txt\n"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert find_files(chosen) == cached_files(chosen) == [path]
    assert site.asked == [f"/{REVISION}/lists/mini.txt"]
    # another revision is another folder
    assert cached_files(dataclasses.replace(chosen, revision="main")) is None


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        ("a red circle\na blue squarf\n", {}, f"mini of .* has the sha256 {digest(MINI)}, and these files have "),
        (MINI, {"n_prompts": 3}, "has 3 prompts, and these files have 2"),
        ("[1]", {"files": ("mini.json",), "sha256": digest("[1]")}, "cannot be read: .* must be a string or an object"),
    ],
)
def test_a_set_with_another_hash_or_count_is_refused_and_not_kept(
    site: Site, tmp_path: Path, content: str, changes: dict, message: str
):
    chosen = PromptSet(**mini(source=site.address, **changes))
    site.files[f"/{chosen.files[0]}"] = content.encode()
    with pytest.raises(IntegrityError, match=message) as caught:
        find_files(chosen)
    assert caught.value.exit_code == 5
    assert in_cache(tmp_path) == []
    assert cached_files(chosen) is None


def test_a_set_that_cannot_be_fetched_is_named_with_its_source_and_the_cure(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    chosen = PromptSet(**mini(source=site.address))
    cure = (
        r"on a machine with network access run `prefloop prompts fetch mini` and give the copy as --prompts mini=PATH"
    )
    with pytest.raises(PrefloopError, match=rf"set mini from {site.address}/lists/mini\.txt: 404 .*{cure}") as caught:
        find_files(chosen)
    assert caught.value.exit_code == 1
    nobody = dataclasses.replace(chosen, source="http://127.0.0.1:9")
    with pytest.raises(PrefloopError, match=rf"from http://127\.0\.0\.1:9/lists/mini\.txt: .*refused.*{cure}"):
        find_files(nobody)
    n = len(site.asked)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(PrefloopError, match=rf"HF_HUB_OFFLINE is set, and it is not in the cache; {cure}"):
        find_files(chosen)
    assert len(site.asked) == n
    assert in_cache(tmp_path) == []


def test_a_damaged_file_in_the_cache_is_refused_with_the_folder_to_remove(site: Site):
    chosen = PromptSet(**mini(source=site.address))
    site.files["/lists/mini.txt"] = MINI.encode()
    (path,) = find_files(chosen)
    path.write_text("a red circle\n")
    with pytest.raises(IntegrityError, match=rf"these files have \w+; remove {path.parent} and fetch the set again"):
        find_files(chosen)


def test_a_zip_file_gives_only_the_files_of_the_set_and_writes_nothing_elsewhere(site: Site, tmp_path: Path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("repo-1/lists/b.txt", "the second")
        archive.writestr("repo-1/lists/a.txt", "the first")
        archive.writestr("repo-1/code.py", "raise SystemExit")
        archive.writestr("repo-1/../../../lists/c.txt", "the third")
    lines = "".join(
        f"{digest(text)}  {n}.txt\n" for n, text in (("a", "the first"), ("b", "the second"), ("c", "the third"))
    )
    fields = mini(source=f"{site.address}/repo.zip", archive=True, files=("*/lists/*.txt",), n_prompts=3)
    chosen = PromptSet(**{**fields, "sha256": digest(lines)})
    site.files["/repo.zip"] = packed.getvalue()
    files = find_files(chosen)
    assert [text for _, text, _ in set_rows(chosen, files)] == ["the first", "the second", "the third"]
    assert in_cache(tmp_path) == ["a.txt", "b.txt", "c.txt"]
    assert not list(tmp_path.glob("*.txt"))
    site.files["/repo.zip"] = b"<html>"
    other = dataclasses.replace(chosen, source=f"{site.address}/repo.zip?2")
    site.files["/repo.zip?2"] = b"<html>"
    with pytest.raises(IntegrityError, match=r"repo\.zip\?2 is not a zip file"):
        find_files(other)


# Fetching from the hub


@pytest.mark.slow(reason="reads a large set of prompts")
def test_a_set_of_the_hub_is_fetched_into_its_cache_and_one_with_another_count_is_not_kept(
    site: Site, tmp_path: Path, install: Callable[..., Path]
):
    hub = {"source": "me/prompts", "files": ("data/mini.txt",), "sha256": None, "revision": None}
    more = hub | {"name": "more", "n_prompts": 4, "files": ("data/mini.txt", "data/more.txt")}
    installed = install(mini(**hub), mini(**more))
    for name, text in (("mini", MINI), ("more", "a green star\n")):
        site.files[f"/datasets/me/prompts/resolve/main/data/{name}.txt"] = text.encode()
    path = os.pathsep.join(filter(None, (str(installed), os.environ.get("PYTHONPATH"))))
    there: dict[str, Any] = {"HF_ENDPOINT": site.address, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": path}

    ended = prefloop("prompts", "fetch", "mini", "--json", cwd=tmp_path, HF_HUB_OFFLINE="0", **there)
    assert ended.returncode == 0, ended.stderr
    (fetched,) = json.loads(ended.stdout)
    (file,) = fetched["files"]
    assert Path(file).read_text() == MINI

    refused = prefloop("prompts", "fetch", "more", cwd=tmp_path, HF_HUB_OFFLINE="0", **there)
    assert refused.returncode == 5, refused.stderr
    assert "the prompt set more of me/prompts has 4 prompts, and these files have 3" in refused.stderr
    # neither its name nor its content, which the cache names by its hash
    assert {"more.txt", digest("a green star\n")}.isdisjoint(in_cache(tmp_path))

    asked = len(site.asked)
    offline = prefloop("prompts", "check", "mini", "--json", cwd=tmp_path, HF_HUB_OFFLINE="1", **there)
    assert offline.returncode == 0, offline.stderr
    checked = json.loads(offline.stdout)
    assert (checked["n_prompts"], checked["revision"], checked["sha256"]) == (2, REVISION, digest(MINI))
    assert len(site.asked) == asked


def test_an_unreachable_hub_is_answered_with_the_command_for_another_machine(tmp_path: Path):
    ended = prefloop("prompts", "fetch", "drawbench", cwd=tmp_path, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert ended.returncode == 1
    assert (
        "cannot fetch the prompt set drawbench from Jialuo21/DrawBench: the hub cannot be reached (offline)"
        in ended.stderr
    )
    assert (
        "run `hf download Jialuo21/DrawBench data/test-00000-of-00001.parquet --repo-type dataset --revision "
        "870c4ef7e6c67eafa7c6e26ba79b7c0d52c9cb16 --local-dir DIR` and give the copy as --prompts drawbench=PATH"
    ) in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


# What a run records


def test_a_run_records_name_revision_and_hash_of_the_prompts_it_read(
    store: PairStore, tiny_pipeline: Path, tmp_path: Path, install: Callable[..., Path]
):
    install(mini())
    (tmp_path / "copy.txt").write_text(MINI)
    for prompts in (f"mini={tmp_path / 'copy.txt'}", str(tmp_path / "copy.txt")):
        config = GenerateConfig(
            model=str(tiny_pipeline), prompts=prompts, images_per_prompt=1, limit=1, num_inference_steps=1
        )
        generate(config, store)
    recorded = [
        json.loads(summary)["prompt_source"] for (summary,) in store.rows("select summary from runs order by started")
    ]
    assert recorded == [
        {"name": "mini", "revision": REVISION, "sha256": digest(MINI)},
        {"name": str(tmp_path / "copy.txt"), "revision": None, "sha256": digest(MINI)},
    ]


def test_sets_are_listed_with_what_is_cached(site: Site, install: Callable[..., Path]):
    install(mini(source=site.address, tags=("kind",), license="CC0"), mini(name="later"))
    site.files["/lists/mini.txt"] = MINI.encode()
    find_files(prompt_set("mini"))
    rows = {row["name"]: row for row in json.loads(CliRunner().invoke(app, ["prompts", "ls", "--json"]).stdout)}
    assert rows["mini"] == {
        "name": "mini",
        "error": None,
        "n_prompts": 2,
        "tags": ["kind"],
        "license": "CC0",
        "cached": True,
        "source": f"{site.address}/lists/mini.txt",
        "files": ["lists/mini.txt"],
        "revision": REVISION,
        "sha256": digest(MINI),
        "citation": "",
    }
    assert not rows["later"]["cached"]
    assert rows["t2i-compbench"]["n_prompts"] == 2400
    shown = CliRunner().invoke(app, ["prompts", "ls"]).stdout
    assert (
        f"mini                     2 prompts  kind                 CC0                cached      {site.address}"
        in shown
    )
