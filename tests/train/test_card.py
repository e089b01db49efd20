"""The model card of a result: front matter, snippets, numbers, and hostile names."""

import datetime
import json
import re
import shutil
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig
from prefloop.models.lora import adapter_of
from prefloop.models.names import LORA_FILE
from prefloop.store import PairStore
from prefloop.train.export.card import evaluations_of, model_card
from prefloop.train.export.kohya import save_kohya

HOSTILE = "x\n---\nlicense: mit\n# <script>alert(1)</script> [a](javascript:b) ``` | \u202e${c}"


def record(**changes: Any) -> dict[str, Any]:
    """The part of prefloop.json that the card uses."""
    config = {
        "lora_rank": 8,
        "lora_alpha": None,
        "learning_rate": 1e-5,
        "lr_scheduler": "cosine",
        "where": "margin > 0.5",
        "seed": 3,
    }
    whole = {
        "base_model": "owner/base",
        "pipeline_class": "StableDiffusionPipeline",
        "objective": "dpo",
        "optimizer": "adamw",
        "absolute_learning_rate": 1e-5,
        "output": "lora",
        "n_pairs": 812,
        "steps": 190,
        "effective_batch": 64,
        "beta_mean": 5000.0,
        "beta_sum": 5000 / (4 * 64 * 64),
        "labelers": {"pickscore": {"rule": "single", "scorers": ["pickscore@4c7b"]}, "people": {}},
        "run_id": "5f0d",
        "versions": {"python": "3.11.2", "diffusers": "0.42.1"},
        "config": config,
    }
    return (
        whole
        | {key: value for key, value in changes.items() if key != "where"}
        | ({"config": config | {"where": changes["where"]}} if "where" in changes else {})
    )


def evaluation(**changes: Any) -> dict[str, Any]:
    def row(win_rate: float, *, in_sample: bool) -> dict[str, Any]:
        return {
            "n_prompts": 400,
            "n_pairs": 799,
            "win_rate": win_rate,
            "win_rate_low": win_rate - 0.05,
            "win_rate_high": win_rate + 0.05,
            "in_sample": in_sample,
        }

    scorers = {"hps": row(0.642, in_sample=False), "pickscore": row(0.613, in_sample=True)}
    return {"baseline": "owner/base", "n_prompts": 400, "n_trained_prompts": 0, "scorers": scorers} | changes


def snippet(card: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)\n```", card, re.DOTALL)
    return code


def test_the_front_matter_is_what_the_hub_expects():
    data = ModelCard(model_card(record(), [])).data.to_dict()
    assert data == {
        "base_model": "owner/base",
        "base_model_relation": "adapter",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "diffusion-dpo", "prefloop", "lora"],
    }
    full = ModelCard(model_card(record(output="pipeline", objective="sft"), [])).data.to_dict()
    assert full["base_model_relation"] == "finetune"
    assert full["tags"] == ["text-to-image", "sft", "prefloop"]


def test_a_base_that_is_not_on_the_hub_is_not_in_the_front_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    for base in ("shapes", "/home/me/model", "models/mine", HOSTILE):
        data = ModelCard(model_card(record(base_model=base), [])).data.to_dict()
        assert "base_model" not in data
        assert "base_model_relation" not in data


def test_the_card_says_how_the_model_was_trained():
    card = model_card(record(), [])
    for line in (
        "base model: `owner/base`",
        # 5000 / (4 * 64 * 64) = 0.30518
        "beta: 5000 for a mean over the latent's values, which is 0.3052 for their sum",
        "LoRA: rank 8, alpha 8",
        "learning rate: 1e-05, `cosine`; adamw",
        "steps: 190, with 64 pairs each",
        "pairs: 812, where `margin > 0.5`",
        "labeler: `pickscore` (scorers: `pickscore@4c7b`)",
        "labeler: `people`",
        "run: `5f0d`, seed 3",
        "versions: python 3.11.2, diffusers 0.42.1",
    ):
        assert f"\n- {line}\n" in card
    assert "Win rates" not in card
    assert "beta" not in model_card(record(objective="sft"), [])
    assert "LoRA: rank 8" in model_card(record(output="pipeline"), [])  # fused
    assert "added to the loss" not in card
    added = record()
    added["config"] |= {"anchor": 250.0, "sft_weight": 0.0}
    assert (
        "\n- added to the loss: 250 times the mean squared distance to the reference's predictions\n- LoRA:"
        in model_card(added, [])
    )
    added["config"] |= {"anchor": 0.0, "sft_weight": 12.5}
    assert "\n- added to the loss: 12.5 times the chosen image's error\n- LoRA:" in model_card(added, [])
    whole = record(output="pipeline")
    assert "LoRA" not in model_card(whole | {"config": whole["config"] | {"lora_rank": 0}}, [])


def test_win_rates_are_listed_with_interval_and_counts():
    card = model_card(record(), [evaluation(n_trained_prompts=7), evaluation(baseline="other")])
    assert "| `hps` | 64.2 % | 59.2 to 69.2 % | 400 | 799 |\n" in card
    assert "| `pickscore` (in-sample) | 61.3 % | 56.3 to 66.3 % | 400 | 799 |\n" in card
    assert "on 400 prompts; 7 of them were used in training." in card
    assert "how many of them were used in training is not known" in model_card(
        record(), [evaluation(n_trained_prompts=None)]
    )
    assert card.index("Against `owner/base`") < card.index("Against `other`")
    assert card.count("not independent evidence") == 1
    outside = evaluation(scorers={"hps": evaluation()["scorers"]["hps"]})
    assert "not independent evidence" not in model_card(record(), [outside])


def test_too_few_prompts_have_words_instead_of_an_interval():
    row = evaluation()["scorers"]["hps"] | {"n_prompts": 3, "win_rate_low": None, "win_rate_high": None}
    card = model_card(record(), [evaluation(scorers={"hps": row})])
    assert "| `hps` | 64.2 % | no interval: 3 prompts, at least 10 are needed | 3 | 799 |\n" in card


def test_hostile_names_stay_text():
    labels = {"labelers": {HOSTILE: {"scorers": [HOSTILE]}}}
    scorers = {HOSTILE: evaluation()["scorers"]["hps"]}
    card = model_card(
        record(base_model=HOSTILE, where=HOSTILE, **labels), [evaluation(baseline=HOSTILE, scorers=scorers)]
    )
    assert ModelCard(card).data.to_dict().keys() == {"library_name", "pipeline_tag", "tags"}
    # one line, between more backticks than it has in a row; the character that reverses text is replaced
    shown = HOSTILE.replace("\n", " ").replace("\u202e", "\N{REPLACEMENT CHARACTER}")
    body = card.split("\n---\n", 1)[1]
    assert f"\n- base model: ```` {shown} ````\n" in body
    assert f", where ```` {shown} ````\n" in body
    assert f"\n- labeler: ```` {shown} ```` (scorers: ```` {shown} ````)\n" in body
    assert f"Against ```` {shown} ````, from" in body
    row = f"| ```` {shown} ```` | 64.2 %".replace("``` |", "``` \\|", 1)
    assert row in body
    # no part of it begins a line, ends the snippet or is outside of inline code
    assert "\nlicense" not in card
    assert "\n# <script" not in card
    compile(snippet(card), "snippet", "exec")
    outside_code = re.sub(
        r"(`+)(?!`).+?(?<!`)\1(?!`)", "", re.sub(r"\n```python\n.*?\n```\n", "", body, flags=re.DOTALL)
    )
    assert "script" not in outside_code


def test_the_snippet_names_the_prompt_which_is_not_every_pipelines_first_argument():
    for output in ("pipeline", "transformer", "lora"):
        assert 'pipeline(prompt="' in snippet(
            model_card(record(pipeline_class="Flux2KleinPipeline", output=output), [])
        )


def test_an_unknown_pipeline_class_is_refused():
    with pytest.raises(ValueError, match="Lumina2Pipeline"):
        model_card(record(pipeline_class="Lumina2Pipeline"), [])


@pytest.mark.parametrize("output", ["pipeline", "unet", "lora", "kohya"])
@pytest.mark.parametrize("base", ["shapes", "a folder"])
def test_the_snippet_loads_the_result_and_generates_an_image(
    output: str, base: str, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from diffusers import StableDiffusionPipeline
    from prefloop.models.resolve import find_model

    source = find_model("shapes").source if base == "shapes" else str(tiny_pipeline)
    unet: Any = StableDiffusionPipeline.from_pretrained(source).unet
    if output == "pipeline":
        shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    elif output == "unet":
        with torch.no_grad():
            unet.conv_out.bias.add_(1)
        unet.save_pretrained(tmp_path / "unet")
    else:
        unet.add_adapter(LoraConfig(r=2, init_lora_weights="gaussian", target_modules=["to_q"]))
        save_kohya(unet, adapter_of(unet, "unet"), tmp_path / LORA_FILE)  # diffusers recognizes the layout by its names
    monkeypatch.chdir(tmp_path)
    card = model_card(record(output=output, base_model="shapes" if base == "shapes" else source), [])
    variables: dict[str, Any] = {}
    exec(snippet(card).replace('square")', 'square", num_inference_steps=1)'), variables)
    assert variables["image"].size == variables["pipeline"](" ", num_inference_steps=1).images[0].size
    assert torch.equal(variables["pipeline"].unet.conv_out.bias, unet.conv_out.bias)
    assert bool(variables["pipeline"].get_active_adapters()) == (output in ("lora", "kohya"))


def test_the_snippet_for_sdxl_uses_its_pipeline_class():
    for output in ("pipeline", "unet", "lora", "kohya"):
        code = snippet(model_card(record(pipeline_class="StableDiffusionXLPipeline", output=output), []))
        assert "StableDiffusionXLPipeline.from_pretrained" in code
        assert "StableDiffusionPipeline" not in code
    assert "programs that read kohya's layout" in model_card(record(output="kohya"), [])


def add_run(store: PairStore, minute: int, kind: str, summary: dict, status: str = "done") -> UUID:
    run, at = uuid4(), datetime.datetime(2026, 1, 1, 12, minute)
    row = {"run_id": run, "kind": kind, "status": status, "started": at, "updated": at, "parents": []}
    more = {"config": "{}", "versions": "{}", "git_commit": None, "summary": json.dumps(summary), "error": None}
    store.append("runs", [row | more])
    return run


def test_evaluations_are_those_finished_for_that_model_id_in_order(store: PairStore):
    old, new = UUID(int=1), UUID(int=2)
    for minute, (kind, model, status) in enumerate(
        [
            ("eval", old, "done"),
            ("eval", old, "failed"),
            ("generate", old, "done"),
            ("eval", new, "done"),
            ("eval", old, "done"),
        ]
    ):
        add_run(store, minute, kind, {"model": "tuned", "model_id": str(model), "n": minute}, status)
    store.ingest()
    assert [summary["n"] for summary in evaluations_of(store, old)] == [0, 4]
    assert [summary["n"] for summary in evaluations_of(store, new)] == [3]
    assert evaluations_of(store, UUID(int=9)) == []


def test_an_evaluation_that_version_0_1_stored_is_read(store: PairStore):
    row = {"n_prompts": 400, "n_pairs": 799, "win_rate": 0.642, "low": 0.592, "high": 0.692, "in_sample": False}
    summary = {"against": "owner/base", "n_prompts": 400, "n_trained_prompts": 0, "scorers": {"hps": row}}
    add_run(store, 0, "eval", summary | {"model_id": str(UUID(int=1))}, "done")
    store.ingest()
    card = model_card(record(), evaluations_of(store, UUID(int=1)))
    assert "Against `owner/base`, from the same noise, on 400 prompts." in card
    assert "| `hps` | 64.2 % | 59.2 to 69.2 % | 400 | 799 |\n" in card
