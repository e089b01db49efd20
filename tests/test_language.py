"""Code, help, messages and documents are in plain English: phrases that readers stumbled over stay out."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
REFUSED = {
    r"\bis no (?!longer)\w+": "is not a …, without a …, cannot find …",
    r"\bso (?:many|often)\b": "N, at most N",
    r"\bwhere there (?:is|are) (?:no|none)\b": "if there is no …",
    r"\bmelted\b": "fused",
    r"\bforetell": "predict",
    r"\banew\b": "again",
    r"\bwholly\b": "completely",
    r"\bborne\b": "tolerated",
}
SUFFIXES = (".py", ".md", ".html", ".sql", ".toml", ".js", ".css")
WORLD = "shapes/weights"  # a scorer's model card may say what it likes


def texts() -> list[Path]:
    found = [path for path in ROOT.rglob("*") if path.suffix in SUFFIXES and path.is_file()]
    inside = [path.relative_to(ROOT) for path in found]
    return [
        path
        for path in inside
        if not any(part.startswith(".") or part == "build" for part in path.parts)
        and not path.as_posix().startswith(WORLD)
        and path != Path(__file__).relative_to(ROOT)
    ]


def lines_with(pattern: str, text: str) -> list[int]:
    """The numbers of the lines on which a phrase begins; it may go on on the next line."""
    return [text[: match.start()].count("\n") + 1 for match in re.finditer(pattern.replace(" ", r"\s+"), text, re.I)]


@pytest.mark.parametrize("pattern", REFUSED)
def test_no_text_has_a_phrase_that_readers_stumbled_over(pattern: str):
    found = [
        f"{path}:{number}"
        for path in texts()
        for number in lines_with(pattern, (ROOT / path).read_text(errors="replace"))
    ]
    assert not found, f"write {REFUSED[pattern]!r} instead"


WITHOUT_SPACE = {".py": r":[+z<>0-9]*\.\d%\}", ".md": r"\d%(?!\})", ".html": r"\}\}%"}


def test_a_percentage_has_one_form_in_all_that_is_printed():
    """ "52.4 %", of `core.text.percent`; in code of documents and tests Python's own is fine."""
    found = [
        f"{path}:{number}"
        for path in texts()
        if path.parts[0] not in ("tests", "bench") and path.suffix in WITHOUT_SPACE
        for number in lines_with(WITHOUT_SPACE[path.suffix], (ROOT / path).read_text())
    ]
    assert not found


def test_a_refused_phrase_is_found_across_a_line_break():
    assert lines_with(r"\bso (?:many|often)\b", "one\ntake so\nmany") == [2]
    assert len(texts()) > 200
