"""Settings of a loop: sections, files, and what a loop that goes on may change."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prefloop.core.errors import BusyError, IntegrityError, PrefloopError, UsageError
from prefloop.loop.config import LoopConfig, LoopSettings
from prefloop.loop.settings_file import claimed, identity, read_loop, recipe_text, recipes, write_settings
from prefloop.train.config import TrainConfig


def settings(loop: LoopConfig | None = None, **sections: dict[str, Any]) -> LoopSettings:
    stages = {name: sections.get(name, {}) for name in ("generate", "relabel", "train", "eval")}
    return LoopSettings(loop or LoopConfig(), **stages)


def written(folder: Path, text: str) -> str:
    (folder / "loop.toml").write_text(text)
    return str(folder / "loop.toml")


def test_each_round_generates_with_the_weights_of_the_round_before_and_trains_on_them():
    chained = settings(LoopConfig(model="base-model", output_dir="here", rounds=3))
    assert [chained.generate_config(n).model for n in (1, 2, 3)] == ["base-model", "here/round-1", "here/round-2"]
    assert [chained.train_config(n, "x").model for n in (1, 2, 3)] == ["base-model", "here/round-1", "here/round-2"]
    assert [chained.train_config(n, "x").output_dir for n in (1, 2)] == ["here/round-1", "here/round-2"]
    assert chained.eval_config(2, "base-model").models == ("here/round-2",)


def test_the_seed_of_the_first_round_is_the_loops_and_the_others_follow_from_it():
    config = LoopConfig(seed=7)
    seeds = [config.round_seed(number) for number in range(1, 6)]
    assert seeds[0] == 7
    assert len(set(seeds)) == 5
    assert seeds == [LoopConfig(seed=7, rounds=5).round_seed(number) for number in range(1, 6)]
    assert LoopConfig(seed=8).round_seed(2) != seeds[1]


def test_a_round_trains_on_its_own_pairs_above_the_margin_and_within_the_number_per_prompt():
    config = LoopConfig(min_margin=0.5, pairs_per_prompt=2)
    chosen = settings(config, train={"where": "p_chosen > 0.6 or split = 'x'"})
    expected = "round = 2 and margin > 0.5 and margin_rank <= 2 and (p_chosen > 0.6 or split = 'x'\n)"
    assert chosen.condition(2) == chosen.train_config(2, "x").where == expected
    assert settings().condition(1) == "round = 1"


def test_replay_adds_a_fixed_sample_of_the_earlier_rounds_pairs():
    assert settings(LoopConfig(replay=1)).condition(3) == "(round = 3 or (round < 3))"
    assert settings(LoopConfig(replay=0.5)).condition(3) == (
        "(round = 3 or (round < 3 and left(pair_id::varchar, 4) < '8000'))"
    )
    assert settings(LoopConfig(replay=0.5)).condition(1) == "round = 1"


def test_the_reference_is_the_round_before_or_the_base():
    base = settings(LoopConfig(reference="base"))
    assert [base.train_config(n, "x").reference for n in (1, 2, 3)] == [None, "shapes", "shapes"]
    assert [settings().train_config(n, "x").reference for n in (1, 2)] == [None, None]


@pytest.mark.parametrize(
    ("section", "option", "cure"),
    [
        ("generate", "model", "give model in \\[loop\\] instead"),
        ("train", "output_dir", "give output_dir in \\[loop\\] instead"),
        ("train", "labelers", "leave it out"),
        ("eval", "baseline", "give model in \\[loop\\] instead"),
    ],
)
def test_options_that_the_loop_sets_are_refused_with_a_cure(section: str, option: str, cure: str):
    with pytest.raises(UsageError, match=f"the loop itself sets {option} of \\[{section}\\]; {cure}"):
        settings(None, **{section: {option: "x"}})


def test_a_wrong_value_of_a_stage_is_refused_before_anything_runs():
    with pytest.raises(UsageError, match=r"^learning_rate of \[train\] must be above 0"):
        settings(train={"learning_rate": -1.0})
    for section in ("generate", "relabel", "eval"):  # each has one
        options: dict[str, Any] = {section: {"batch_size": 0}}
        with pytest.raises(UsageError, match=rf"^batch_size of \[{section}\] must be "):
            settings(**options)
    with pytest.raises(UsageError, match="a pair needs two images"):
        settings(generate={"images_per_prompt": 1})


def test_where_of_train_cannot_widen_the_rounds_it_is_added_to():
    with pytest.raises(UsageError, match=r"where of \[train\] '.*' cannot be used"):
        settings(train={"where": "true) or (true"})


def test_a_margin_keeps_all_its_digits():
    assert "margin > 0.123456789" in settings(LoopConfig(min_margin=0.123456789)).condition(1)


def test_a_selection_over_all_rounds_is_refused_with_the_one_within_a_round():
    with pytest.raises(UsageError, match=r"select of \[relabel\] .* give pairs_per_prompt in \[loop\] instead"):
        settings(relabel={"select": "best-worst"})


@pytest.mark.parametrize("changes", [{"rounds": 10**400}, {"rounds": 0}, {"seed": -1}, {"min_margin": float("nan")}])
@pytest.mark.parametrize("more", [{}, {"replay": 1.5}])
def test_numbers_out_of_range_are_refused(changes: dict[str, Any], more: dict[str, Any]):
    with pytest.raises(UsageError, match=rf"{next(iter(changes)).replace('_', '-')} must be"):
        LoopConfig(**changes, **more)


def test_a_file_sets_options_of_every_section_and_the_command_line_comes_first(tmp_path: Path):
    file = written(
        tmp_path, '[loop]\nrounds = 2\nseed = 3\n[train]\nlearning-rate = 2e-4\nbeta_dpo = 9\n[eval]\nscorer = "hps"\n'
    )
    read = read_loop(file, {"rounds": 5}, ["train.learning_rate=1e-4", "generate.prompts=my prompts.txt"])
    assert (read.loop.rounds, read.loop.seed) == (5, 3)
    assert read.train == {"learning_rate": 1e-4, "beta": 9}
    assert read.eval == {"scorers": ("hps",)}
    assert read.generate == {"prompts": "my prompts.txt"}
    assert read.relabel == {}


def test_a_recipe_of_train_can_be_used_with_the_loops_own_model(tmp_path: Path):
    file = written(tmp_path, '[loop]\nmodel = "mine"\n[train]\nconfig = "sd15-lora"\nmax_train_steps = 7\n')
    config = read_loop(file).train_config(1, "x")
    assert (config.model, config.beta, config.max_train_steps, config.learning_rate) == ("mine", 5000, 7, 1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[loops]\nrounds = 2\n", "'loops', which is not a section; sections are loop, generate, relabel, train, eval"),
        ("rounds = 2\n", "'rounds', which is not a section"),
        ("[train]\nlearning_rat = 1\n", "sets 'learning_rat', which is not an option; `prefloop train --help`"),
        ("[loop]\nrounds = 'two'\n", "sets rounds to 'two', which is not an integer"),
        ("[eval.checkpoints]\nhps = 3\n", "sets checkpoints to {'hps': 3}, which is not a table"),
        ("[loop\n", "is not valid TOML"),
        (f"[loop]\nrounds = {'9' * 5000}\n", "is not valid TOML"),
        (f"[loop]\nrounds = {'[' * 5000}\n", "nested too deeply"),
        (f"[loop]\nrounds = {'9' * 400}\n", "sets rounds to 99999999999999999999…, an integer of more than 64 bits"),
        (f"[train]\nlearning_rate = {'9' * 400}\n", "learning_rate to 99999999999999999999…, an integer of more"),
        ('[loop]\nmodel = "a\\u0000b"\n', "cannot hold a NUL character"),
        ('[eval]\nscorers = ["a\\u0000b"]\n', "cannot hold a NUL character"),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path: Path, text: str, message: str):
    with pytest.raises(UsageError) as caught:
        read_loop(written(tmp_path, text))
    assert message in str(caught.value)


@pytest.mark.parametrize("assignment", ["learning_rate=1", "train.learning_rate", "training.seed=1", "="])
def test_an_assignment_without_section_option_and_value_is_refused(assignment: str):
    with pytest.raises(UsageError, match=r"--set takes SECTION\.OPTION=VALUE"):
        read_loop(None, {}, [assignment])


def test_options_on_the_command_line_come_before_the_files_and_a_beta_belongs_to_its_loss(tmp_path: Path):
    file = written(tmp_path, '[train]\nconfig = "sd15-lora"\nmax_train_steps = 7\n')
    assert read_loop(file).train["beta"] == 5000
    assert "beta" not in read_loop(file, {}, ["train.loss=mapo"]).train
    for order in (1, -1):
        both = ["train.beta=3", "train.loss=mapo"][::order]
        assert read_loop(file, {}, both).train["beta"] == 3
        options = ["train.config=sdxl-lora", "train.learning_rate=7e-3"][::order]
        read = read_loop(file, {}, options).train
        assert (read["learning_rate"], read["resolution"]) == (7e-3, 1024)


def test_an_assignment_cannot_bring_another_with_it():
    with pytest.raises(UsageError, match="is not an integer"):
        read_loop(None, {}, ["train.max_train_steps=1\nother=2"])


def test_a_file_of_windows_is_read_and_one_that_is_not_utf_8_is_named(tmp_path: Path):
    path = tmp_path / "loop.toml"
    path.write_bytes(b"\xef\xbb\xbf[loop]\r\nrounds = 2\r\n")
    assert read_loop(str(path)).loop.rounds == 2
    path.write_bytes(b'[loop]\nmodel = "caf\xe9"\n')
    with pytest.raises(UsageError, match="not UTF-8 at byte 19; convert it first"):
        read_loop(str(path))


@pytest.mark.parametrize("name", ["~nobody-here/loop.toml", "nope.toml"])
def test_a_file_that_does_not_exist_is_refused(name: str):
    with pytest.raises(UsageError, match=rf"no file and no recipe is called '{name}'"):
        read_loop(name)


def test_a_folder_or_an_impossible_name_is_not_a_file(tmp_path: Path):
    with pytest.raises(UsageError, match=r"is a folder; name a recipe or a TOML file"):
        read_loop(str(tmp_path))
    with pytest.raises(PrefloopError, match="File name too long"):
        read_loop("x" * 5000)


def test_every_recipe_can_be_read_and_written_for_editing(tmp_path: Path):
    assert {"shapes", "sd15-lora", "sdxl-lora", "sd35-medium-lora"} <= recipes().keys()
    for name, line in recipes().items():
        read = read_loop(name)
        assert line
        assert isinstance(read.train_config(1, "labeler"), TrainConfig)
        assert read_loop(written(tmp_path, recipe_text(name))) == read


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("generate.vae_dtype=int8", r"unknown vae_dtype 'int8' of \[generate\]; choose from auto, float32"),
        ("eval.vae_dtype=int8", r"unknown vae_dtype 'int8' of \[eval\]; choose from auto, float32"),
        ("relabel.rule=borda", r"unknown rule 'borda' of \[relabel\]; choose from single"),
        ("train.loss=dpoo", r"unknown loss 'dpoo' of \[train\]; choose from"),
    ],
)
def test_an_unknown_word_is_refused_with_the_section_it_is_in(assignment: str, message: str):
    with pytest.raises(UsageError, match=f"^{message}"):
        read_loop("shapes", assignments=[assignment])


def test_an_unknown_recipe_is_refused_with_those_there_are():
    with pytest.raises(UsageError, match=r"no file and no recipe is called 'nope'; recipes are .*shapes"):
        read_loop("nope")


def begun(chosen: LoopSettings, *, trained: bool) -> Path:
    """A loop's folder as it is after its first round's images, or after the first steps of its training."""
    with claimed(chosen):
        write_settings(chosen)
    if trained:
        chosen.loop.round_dir(1).mkdir()
        (chosen.loop.round_dir(1) / "metrics.csv").write_text("step\n")
    return Path(chosen.loop.output_dir)


def refused(chosen: LoopSettings) -> str:
    with pytest.raises(UsageError) as caught, claimed(chosen):
        pass
    return str(caught.value)


def test_a_loop_goes_on_with_more_rounds_and_refuses_other_settings(tmp_path: Path):
    folder = str(tmp_path / "loop")
    begun(settings(LoopConfig(output_dir=folder, rounds=2), train={"learning_rate": 1e-4}), trained=True)
    more = settings(LoopConfig(output_dir=folder, rounds=3), train={"learning_rate": 1e-4})
    begun(more, trained=False)
    other = settings(LoopConfig(output_dir=folder, rounds=3, replay=0.5), train={"learning_rate": 2e-4, "beta": 5.0})
    assert (
        "loop.replay was 0.0 and is 0.5; train.beta was not set and is 5.0; train.learning_rate was 0.0001 and is 0.0002"
    ) in refused(other)
    fewer = settings(LoopConfig(output_dir=folder, rounds=2), train={"learning_rate": 1e-4})
    assert "holds a loop of 3 rounds; --rounds can only be raised, got 2" in refused(fewer)


def test_settings_that_nothing_depends_on_yet_may_change(tmp_path: Path):
    loop = LoopConfig(output_dir=str(tmp_path / "loop"), min_margin=3.0)
    begun(settings(loop, train={"learning_rate": 1e-4}), trained=False)
    relaxed = settings(replace(loop, min_margin=1.0, patience=0), train={"beta": 2.0}, relabel={"scorers": ("hps",)})
    with claimed(relaxed):
        pass
    assert "loop.seed was 0 and is 1" in refused(settings(replace(loop, seed=1)))
    begun(settings(loop, train={"learning_rate": 1e-4}), trained=True)
    with claimed(settings(loop, train={"learning_rate": 1e-4}, eval={"scorers": ("clip",)})):
        pass  # evaluated with a scorer that has no result: nothing depends on it
    (tmp_path / "loop" / "round-1.json").write_text("")
    assert "eval.scorers" in refused(settings(loop, train={"learning_rate": 1e-4}, eval={"scorers": ("clip",)}))
    assert "generate.limit was not set and is 7" in refused(settings(loop, generate={"limit": 7}))


def test_a_loop_goes_on_with_its_store_alone(tmp_path: Path):
    loop = LoopConfig(output_dir=str(tmp_path / "loop"), store=str(tmp_path / "mine"))
    begun(settings(loop), trained=False)
    (tmp_path / "mine" / "journal").mkdir(parents=True)
    forgotten = settings(replace(loop, store=None))
    assert f"whose store is {tmp_path / 'mine'}; name it with --store, or move it" in refused(forgotten)
    (tmp_path / "mine").rename(tmp_path / "loop" / "store")
    with claimed(forgotten):
        pass


@pytest.mark.parametrize("store", ["here", "here/result", "here/round-1", "here/./round-12/x", "here/reports"])
def test_a_store_is_none_of_the_folders_that_the_loop_writes(store: str):
    with pytest.raises(UsageError, match=f"the loop writes {store} itself; name another folder with --store"):
        LoopConfig(output_dir="here", store=store)
    for other in ("there", "here/store", "here/round", "here-too/result"):
        LoopConfig(output_dir="here", store=other)


def test_what_a_killed_process_left_in_a_new_folder_is_not_somebody_elses(tmp_path: Path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".loop.json.123.tmp").write_text("{")
    with claimed(settings(LoopConfig(output_dir=str(tmp_path)))):
        pass


def test_a_loop_that_never_began_leaves_no_folder(tmp_path: Path):
    with pytest.raises(KeyError), claimed(settings(LoopConfig(output_dir=str(tmp_path / "loop")))):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["{", "[]", '{"loop": 1}', "[" * 100_000])
def test_damaged_settings_are_named_and_left_as_they_are(tmp_path: Path, text: str):
    folder = begun(settings(LoopConfig(output_dir=str(tmp_path / "loop"))), trained=True)
    (folder / "loop.json").write_text(text)
    with pytest.raises(IntegrityError, match=r"loop\.json cannot be read; restore it, or begin another loop"):
        begun(settings(LoopConfig(output_dir=str(folder))), trained=False)
    assert (folder / "loop.json").read_text() == text


def test_two_loops_in_one_folder_exclude_one_another(tmp_path: Path):
    chosen = settings(LoopConfig(output_dir=str(tmp_path / "loop")))
    with claimed(chosen), pytest.raises(BusyError, match=r"the loop .*loop is in use by process \d+"), claimed(chosen):
        pass


def test_a_folder_that_is_a_file_is_named(tmp_path: Path):
    (tmp_path / "loop").write_text("mine")
    assert f"{tmp_path / 'loop'} is a file; name a folder with --output-dir" in refused(
        settings(LoopConfig(output_dir=str(tmp_path / "loop")))
    )
    with pytest.raises(PrefloopError, match=r"cannot write .*loop/below: Not a directory"):
        begun(settings(LoopConfig(output_dir=str(tmp_path / "loop" / "below"))), trained=False)
    assert (tmp_path / "loop").read_text() == "mine"


def test_a_folder_with_other_files_is_refused_and_left_as_it_is(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("mine")
    with (
        pytest.raises(UsageError, match="is not empty and holds no loop"),
        claimed(settings(LoopConfig(output_dir=str(tmp_path)))),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_identity_of_a_loop_does_not_depend_on_its_folder_or_the_number_of_rounds():
    one = identity(settings(LoopConfig(output_dir="a", rounds=1)))
    assert one == identity(settings(LoopConfig(output_dir="b", rounds=4, store="c")))
    assert one != identity(settings(LoopConfig(seed=1)))
    assert one != identity(settings(train={"learning_rate": 2e-4}))


def test_limits_of_requests_are_settings_of_relabel_and_eval_that_a_loop_may_change(tmp_path: Path):
    text = """
        [relabel]
        scorers = ["vlm:vqascore"]
        checkpoints = { "vlm:vqascore" = "http://localhost:8000/v1#m" }
        max_requests = 500
        concurrency = 4
        [eval]
        requests_per_minute = 60
    """
    first = read_loop(written(tmp_path, text))
    assert (first.relabel_config().max_requests, first.relabel_config().concurrency) == (500, 4)
    assert first.eval_config(1, "base").requests_per_minute == 60
    assert identity(first) == identity(read_loop(written(tmp_path, text.replace("500", "900").replace("60", "90"))))
    assert identity(first) != identity(read_loop(written(tmp_path, text.replace("#m", "#n"))))
