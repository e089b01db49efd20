"""The reports and plots of runs in `browse`: found from any folder, only their own files, and no script but prefloop's."""

import base64
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from browsing import add_run, entered
from PIL import Image
from prefloop.core.report_script import SCRIPT_SOURCE
from prefloop.store import PairStore
from prefloop.store.images import png_bytes

IMAGE = "0a" * 16
STYLE = "p { color: red }"


def write_report(folder: Path, evaluation: UUID | None = None) -> Path:
    """A report with a style and a script that somebody has added."""
    (folder / "images").mkdir(parents=True)
    page = f"<style>{STYLE}</style><p>won</p><style>evil</style><script>evil()</script>"
    (folder / "report.html").write_text(page)
    (folder / "images" / f"{IMAGE}.png").write_bytes(png_bytes(Image.new("RGB", (2, 2))))
    (folder / "secret.txt").write_text("secret")
    if evaluation is not None:
        (folder / "results.json").write_text(json.dumps({"evaluation_id": str(evaluation)}))
    return folder


@pytest.fixture
def report(tmp_path: Path) -> Path:
    (tmp_path / "outside.png").write_text("secret")
    return write_report(tmp_path / "report")


def digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_the_report_of_an_evaluation_opens_with_its_own_style_and_no_script_but_that_of_prefloop(
    store: PairStore, report: Path
):
    run = add_run(store, config={"output_dir": str(report)})
    client = entered(store)
    for page in ("/", "/runs"):
        assert f'href="/runs/{run.hex}/report.html"' in client.get(page).text
    answer = client.get(f"/runs/{run.hex}/report.html")
    assert "won" in answer.text
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["style-src"] == digest(STYLE)  # that of the first block
    assert policy["script-src"] == SCRIPT_SOURCE != digest("evil()")
    assert policy["default-src"] == "'none'"
    assert client.get(f"/runs/{run.hex}/images/{IMAGE}.png").headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    "name",
    [
        "secret.txt",
        "../outside.png",
        "..%2foutside.png",
        "images/../secret.txt",
        "images/x.png",
        "report.html%00",
        "samples.png",
        "training.png",
        "reports/round-1-against-base/report.html",
        "",
    ],
)
def test_only_the_files_of_a_report_are_served(store: PairStore, report: Path, name: str):
    os.symlink("/etc/hostname", report / "samples.png")  # a symbolic link out of the folder
    (report / "training.png").write_text("secret")  # which an evaluation does not write
    run = add_run(store, config={"output_dir": str(report)})
    assert entered(store).get(f"/runs/{run.hex}/{name}").status_code == 404


def test_a_loop_has_its_report_and_those_of_its_evaluations(store: PairStore, tmp_path: Path):
    loop = tmp_path / "loop"
    write_report(loop / "reports" / "round-1-against-base")
    (loop / "reports" / "notes.txt").write_text("secret")
    (loop / "report.html").write_text("rounds")
    (loop / "report-images").mkdir()
    (loop / "report-images" / "win_rates-dark.png").write_bytes(png_bytes(Image.new("RGB", (2, 2))))
    run = add_run(store, "round", config={"round": 1, "output_dir": str(loop)})
    client = entered(store)
    for name, status in (
        ("report.html", 200),
        ("report-images/win_rates-dark.png", 200),
        ("reports/round-1-against-base/report.html", 200),
        (f"reports/round-1-against-base/images/{IMAGE}.png", 200),
        ("reports/round-1-against-base/secret.txt", 404),
        ("reports/round-1-against-../secret.txt", 404),
        ("reports/notes.txt", 404),
        ("reports/..%2freport.html", 404),
        ("loop.json", 404),
    ):
        url = f"/runs/{run.hex}/{name}"
        assert client.get(url).status_code == status, name


def test_a_training_run_has_its_plot(store: PairStore, tmp_path: Path):
    folder = tmp_path / "tuned"
    folder.mkdir()
    (folder / "training.png").write_bytes(png_bytes(Image.new("RGB", (2, 2))))
    (folder / "prefloop.json").write_text(json.dumps({"run_id": str(uuid4())}))
    run = add_run(store, "train", config={"output_dir": str(folder)})
    client = entered(store)
    assert "now holds what another run wrote" in client.get("/runs").text
    (folder / "prefloop.json").write_text(json.dumps({"run_id": str(run)}))
    assert f'src="/runs/{run.hex}/training.png"' in client.get("/runs").text
    assert client.get(f"/runs/{run.hex}/training.png").headers["content-type"] == "image/png"
    assert client.get(f"/runs/{run.hex}/prefloop.json").status_code == 404


def test_a_report_that_is_gone_or_was_written_over_says_so(store: PairStore, tmp_path: Path):
    gone = add_run(store, config={"output_dir": str(tmp_path / "a" / ".." / "gone")})
    other = add_run(store, "train", config={"output_dir": "/etc"})
    evaluation = uuid4()
    write_report(tmp_path / "again", evaluation)
    replaced = add_run(store, config={"output_dir": str(tmp_path / "again")}, summary={"evaluation_id": str(uuid4())})
    unfinished = add_run(store, config={"output_dir": str(tmp_path / "never")}, status="failed")
    client = entered(store)
    text = re.sub(r"<[^>]+>", "", client.get("/runs").text)
    assert f"The report was not found: {tmp_path}/gone is gone or was moved" in text
    assert f"The report was not found: {tmp_path}/again now holds what another run wrote" in text
    assert "The plot was not found: /etc is gone or was moved" in text
    assert text.count("was not found") == 3  # what did not get far enough to write a report does not miss it
    for run in (gone, other, replaced, unfinished):
        assert client.get(f"/runs/{run.hex}/report.html").status_code == 404


def test_a_report_is_found_from_any_folder_and_beside_a_store_that_was_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    evaluation = uuid4()
    store = PairStore.create(tmp_path / "project" / "store")
    below = store.path / "reports" / "abc"
    below.mkdir(parents=True)
    (below / "report.html").write_text("won")
    write_report(tmp_path / "project" / "out" / "mine", evaluation)
    of_another = write_report(tmp_path / "project" / "yours", uuid4())
    summary = {"evaluation_id": str(evaluation)}
    by_name = add_run(store, summary={"report": "somewhere/else/reports/abc"})
    relative = add_run(store, config={"output_dir": "out/mine"}, summary=summary)
    absolute = add_run(store, config={"output_dir": str(tmp_path / "project" / "out" / "mine")}, summary=summary)
    foreign = add_run(store, config={"output_dir": str(of_another)}, summary=summary)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    def statuses(store: PairStore) -> list[int]:
        client = entered(store)
        return [
            client.get(f"/runs/{run.hex}/report.html").status_code for run in (by_name, relative, absolute, foreign)
        ]

    assert statuses(store) == [200, 200, 200, 404]
    shutil.move(tmp_path / "project", tmp_path / "moved")
    assert statuses(PairStore.open(tmp_path / "moved" / "store")) == [200, 200, 200, 404]
