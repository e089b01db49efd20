"""Results that version 0.1 wrote load, are evaluated and get a card, under the names their settings have now."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from prefloop.core.hashing import RESULT_FILE, fingerprint
from prefloop.core.ids import content_id
from prefloop.eval.result import training_scorers
from prefloop.models.lineage import lineage
from prefloop.models.loading import load_component
from prefloop.models.parts import with_parts
from prefloop.models.resolve import find_model
from prefloop.store import PairStore
from prefloop.train.export.write_card import write_card
from results import refused, rewrite


def old_record(folder: Path, base: str, base_id: object, **config: Any) -> None:
    """Replace prefloop.json with the entries of version 0.1 that say what a model was trained on."""
    (folder / RESULT_FILE).write_text(json.dumps({"base_model": base, "base_model_id": str(base_id), "config": config}))


def whole_old_record(base: str, base_id: object) -> dict[str, Any]:
    """A complete record; of its settings, those that are read and those that were renamed."""
    config = {"labels": ["redder=2"], "model": base, "revision": None, "vae": None, "unet_init": None, "where": None}
    config |= {"loss": "dpo", "beta_dpo": 500.0, "lora_rank": 2, "lora_alpha": 4.0, "learning_rate": 1e-3}
    config |= {"lr_scheduler": "cosine", "cache_reference": 0, "seed": 3, "output": "auto"}
    return {
        "base_model": base,
        "base_model_id": str(base_id),
        "family": "sd",
        "pipeline_class": "StableDiffusionPipeline",
        "kind": "lora",
        "output": "lora",
        "objective": "dpo",
        "optimizer": "adamw",
        "absolute_learning_rate": 1e-3,
        "effective_batch": 32,
        "run_id": "5f0d",
        "labels": ["redder"],
        "labelers": {"redder": {"rule": "single", "scorers": ["redness@1"]}},
        "versions": {"python": "3.11.2"},
        "config": config,
        "steps": 240,
        "n_pairs": 30,
        "loss": 0.6,
        "implicit_accuracy": 0.7,
        "validation": {"implicit_accuracy": 0.6, "low": 0.5, "high": 0.7, "n_pairs": 10},
        "beta_mean": 500.0,
        "beta_sum": 7.8125,
        "verdicts": [],
        "output_dir": "tuned",
    }


def test_a_result_of_version_0_1_loads_is_evaluated_and_gets_a_card(store: PairStore, lora: Path, tiny_pipeline: Path):
    base = find_model(str(tiny_pipeline))
    today = find_model(str(lora)).model_id
    (lora / RESULT_FILE).write_text(json.dumps(whole_old_record(base.name, base.model_id)))
    model = find_model(str(lora))
    assert model.model_id == today
    assert load_component(model)
    assert training_scorers(model) == {"redness"}
    assert write_card(lora, store) == 0
    card = (lora / "README.md").read_text()
    assert "\n- labeler: `redder` (scorers: `redness@1`)\n" in card
    assert "\n- LoRA: rank 2, alpha 4\n" in card
    assert "0.001, `cosine`; adamw\n" in card


def test_a_record_of_version_0_1_is_used_if_its_base_can_be_found(lora: Path, tiny_pipeline: Path, tmp_path: Path):
    base = find_model(str(tiny_pipeline))
    today = find_model(str(lora)).model_id
    old_record(lora, base.name, base.model_id, model=base.name)
    assert find_model(str(lora)).model_id == today
    # trained on a result: config.model names it, and its id was derived from the root pipeline and its own files
    second = Path(shutil.copytree(lora, tmp_path / "second"))
    old_id = content_id(base.model_id.bytes + fingerprint(lora).bytes)
    old_record(second, base.name, old_id, model="tuned")
    model = find_model(str(second))
    assert model.base is not None
    assert Path(model.base.source) == lora
    third = Path(shutil.copytree(lora, tmp_path / "third"))
    old_record(third, base.name, content_id(base.model_id.bytes + fingerprint(second).bytes), model="second")
    assert len(find_model(str(third)).composition.loras) == 3
    shutil.rmtree(lora)
    assert "was trained on tuned, which does not exist" in refused(second)


@pytest.mark.parametrize(("option", "folder", "part"), [("unet_init", "unet", "component"), ("vae", "vae", "vae")])
def test_a_part_that_version_0_1_trained_on_is_loaded_from_the_hub_and_refused_from_a_folder(
    lora: Path, tiny_pipeline: Path, option: str, folder: str, part: str
):
    base = find_model(str(tiny_pipeline))
    old_record(lora, base.name, base.model_id, model=base.name, **{option: str(tiny_pipeline / folder)})
    assert "kept no hash of it" in refused(lora)
    old_record(lora, base.name, base.model_id, model=base.name, **{option: "owner/part"})
    assert getattr(find_model(str(lora)).composition, part).source == "owner/part"


def test_a_base_with_another_unet_is_found_by_the_earlier_name_of_the_option(lora: Path, tiny_pipeline: Path):
    other = Path(shutil.copytree(tiny_pipeline / "unet", lora.parent / "other"))
    trained_on = lineage(with_parts(find_model(str(tiny_pipeline)), init_from=str(other)), lora)
    trained_on["unet_init"] = trained_on.pop("init_from")
    rewrite(lora, trained_on=trained_on)
    unet = find_model(str(lora)).composition.component
    assert unet is not None
    assert Path(unet.source) == other
