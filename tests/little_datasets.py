"""Small preference datasets in the schemas of the real ones."""

import datetime
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from content import image_bytes
from PIL import Image
from prefloop.store.exporters.pickapic import SCHEMA

LABELS = (1.0, 0.0, 0.5, 1.0, None)
"""Labels of Pick-a-Pic's rows in turn: first, second, tie, first, no label."""


def first(number: int) -> bytes:
    return image_bytes((number % 256, number // 256, 0))


def second(number: int) -> bytes:
    return image_bytes((number % 256, number // 256, 255))


def jpeg(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def pickapic_rows(n: int, **changes: Any) -> Iterator[dict[str, Any]]:
    """Rows in the schema of Pick-a-Pic, two per prompt."""
    for number in range(n):
        label = LABELS[number % len(LABELS)]
        yield {
            "are_different": True,
            "best_image_uid": {1.0: f"u{number}", 0.0: f"v{number}"}.get(label, "tie"),  # type: ignore[arg-type]
            "caption": f"prompt {number // 2}",
            "created_at": datetime.datetime(2023, 1, 1),
            "has_label": label is not None,
            "image_0_uid": f"u{number}",
            "image_0_url": "https://example.invalid/0.png",
            "image_1_uid": f"v{number}",
            "image_1_url": "https://example.invalid/1.png",
            "jpg_0": first(number),
            "jpg_1": second(number),
            "label_0": label,
            "label_1": None if label is None else 1 - label,
            "model_0": "sd15",
            "model_1": "sdxl",
            "ranking_id": number,
            "user_id": number % 7,
            "num_example_per_prompt": 2,
        } | changes


def pickapic(path: Path, n: int = 10, rows: list[dict[str, Any]] | None = None, row_group_size: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(pickapic_rows(n)) if rows is None else rows, SCHEMA)
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def preferences(path: Path, n: int = 4, image: dict[str, Any] | None = None) -> Path:
    """open-image-preferences: chosen and rejected as Image columns of the hub."""
    names = ("id", "prompt", "chosen_model", "rejected_model", "evolution", "category", "sub_category")
    schema = pa.schema([(name, pa.string()) for name in names] + [("chosen", _IMAGE), ("rejected", _IMAGE)])
    rows = [
        {
            "id": str(number),
            "prompt": f"prompt {number}",
            "chosen": image or {"bytes": first(number), "path": "a.png"},
            "rejected": {"bytes": second(number), "path": "b.png"},
            "chosen_model": "flux",
            "rejected_model": "sd35",
            "evolution": "quality",
            "category": "Anime",
            "sub_category": "Landscape",
        }
        for number in range(n)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    return path


def hpd(folder: Path) -> Path:
    """HPDv2: two rows of two images in train.json, the second image preferred in the first row; three ranked in test.json."""
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
    for number in range(3):
        (folder / "train" / f"{number}.jpg").write_bytes(jpeg((number * 80, 0, 0)))
        (folder / "test" / f"{number}.jpg").write_bytes(jpeg((0, number * 80, 0)))
    train = [
        {"prompt": "a cat", "file_path": ["0.jpg", "1.jpg"], "human_preference": [0, 1]},
        {"prompt": "a dog", "file_path": ["1.jpg", "2.jpg"], "human_preference": [1, 0]},
    ]
    test = [{"prompt": "a bird", "image_path": ["0.jpg", "1.jpg", "2.jpg"], "rank": [2, 1, 2], "raw_annotations": []}]
    (folder / "train.json").write_text(json.dumps(train))
    (folder / "test.json").write_text(json.dumps(test))
    return folder


def imagereward_rows() -> list[dict[str, Any]]:
    """Two prompts with three and two images; the best is the last of the first prompt and the first of the second."""
    ranked = [("1", "a cat", 2), ("1", "a cat", 3), ("1", "a cat", 1), ("2", "a dog", 1), ("2", "a dog", 2)]
    return [
        {
            "image_path": f"images/train/train_1/{number}.webp",
            "prompt_id": prompt_id,
            "prompt": prompt,
            "classification": "Animals",
            "rank": rank,
            "overall_rating": 8 - rank,
            "image_amount_in_total": 3,
        }
        for number, (prompt_id, prompt, rank) in enumerate(ranked)
    ]


def imagereward(folder: Path) -> Path:
    """The unpacked zip files of ImageRewardDB: train_1/train_1.json and the images beside it."""
    (folder / "train_1").mkdir(parents=True)
    for number in range(5):
        (folder / "train_1" / f"{number}.webp").write_bytes(first(number))
    (folder / "train_1" / "train_1.json").write_text(json.dumps(imagereward_rows()))
    return folder


def folders(folder: Path, n: int = 3, names: tuple[str, str] = ("winner", "loser")) -> Path:
    for name, image in zip(names, (first, second), strict=True):
        (folder / name).mkdir(parents=True)
        for number in range(n):
            (folder / name / f"{number}.png").write_bytes(image(number))
    for number in range(n):
        (folder / names[0] / f"{number}.txt").write_text(f"prompt {number}\n")
    return folder


def jsonl(folder: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    (folder / "pictures").mkdir(parents=True)
    for number in range(3):
        (folder / "pictures" / f"w{number}.png").write_bytes(first(number))
        (folder / "pictures" / f"l{number}.png").write_bytes(second(number))
    rows = rows or [
        {"prompt": f"prompt {number}", "chosen": f"pictures/w{number}.png", "rejected": f"pictures/l{number}.png"}
        for number in range(3)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "pairs.jsonl"


def simpletuner(folder: Path, n: int = 2, **changes: Any) -> Path:
    """SimpleTuner's Flow-DPO example, whose absolute paths are of another machine; `changes` are of the chosen dataset."""
    folders(folder, n, ("win", "lose"))
    chosen = {"id": "preferred", "dataset_type": "image", "type": "local", "instance_data_dir": "/data/win"}
    rejected = {"id": "rejected", "dataset_type": "conditioning", "conditioning_type": "reference_strict"}
    rejected |= {"type": "local", "instance_data_dir": "/data/lose", "source_dataset_id": "preferred"}
    datasets = [chosen | {"conditioning_data": ["rejected"]} | changes, rejected]
    (folder / "dataloader.json").write_text(json.dumps(datasets))
    return folder


def kohya(folder: Path, n: int = 2) -> Path:
    """Two subsets of sd-scripts, each with w and l and a caption of several lines."""
    for subset, start in (("1_cats", 0), ("2_dogs", n)):
        for side, image in (("w", first), ("l", second)):
            (folder / subset / side).mkdir(parents=True)
            for number in range(start, start + n):
                (folder / subset / side / f"{number}.png").write_bytes(image(number))
                (folder / subset / side / f"{number}.caption").write_text(f"{subset} {number} \nanother line\n")
    return folder


def flow_factory_record(number: int) -> dict[str, Any]:
    """The preference record of Flow-Factory's guide."""
    chosen, rejected = ({"media": [{"type": "image", "path": f"pictures/{side}{number}.png"}]} for side in "wl")
    return {
        "schema_version": 2,
        "input": {"prompt": f"poster {number}", "media": []},
        "supervision": {"type": "preference", "chosen": chosen, "rejected": rejected},
        "metadata": {"annotator": "example"},
    }


def flow_factory(folder: Path, records: list[dict[str, Any]] | None = None) -> Path:
    """Preferences in train.jsonl, and prompts for evaluation in test.jsonl."""
    jsonl(folder).unlink()
    records = [flow_factory_record(number) for number in range(3)] if records is None else records
    (folder / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "test.jsonl").write_text('{"prompt": "an evaluation"}\n')
    return folder


def unlabelled(folder: Path) -> None:
    """Images without labels in four layouts: photos, imagefolder, by-prompt and foxes, two images of a prompt each."""
    rows = []
    for number in range(2):
        for name, inside in (("photos", "a"), ("imagefolder", "train"), ("by-prompt", "a cat"), ("foxes", "a")):
            path = folder / name / inside / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image_bytes((number, len(name), 100)))
        (folder / "photos" / "a" / f"{number}.txt").write_text("a dog\n")
        rows.append({"file_name": f"train/{number}.png", "text": "a bird", "style": "photo"})
    (folder / "imagefolder" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
