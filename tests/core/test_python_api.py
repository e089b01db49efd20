"""`import prefloop`: the public names, quickly, and the stages with one's own objects."""

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import prefloop
import pytest
from content import add_image, add_pair, add_prompt
from little_scorers import Darkness, Redness
from prefloop.relabel.rules import RULES
from prefloop.store import PairStore

PUBLIC = "Comparison EvalConfig GenerateConfig PairScores PrefloopError RelabelConfig Rule Scorer Store TrainConfig UsageError"
METHODS = ["agreement", "evaluate", "generate", "image", "path", "relabel", "saved_query", "sql", "train"]


@pytest.fixture
def pairs(tmp_path: Path) -> prefloop.Store:
    """Two pairs. The first has reds 10 and 250 on black, the second 100 and 120."""
    store = PairStore.create(tmp_path / "pairs")
    for text, reds in (("one", (10, 250)), ("two", (100, 120))):
        first, second = (add_image(store, (red, 0, 0)) for red in reds)
        add_pair(store, add_prompt(store, text), first, second)
    store.ingest()
    return prefloop.open_store(tmp_path / "pairs")


def redder(store: prefloop.Store, labeler: str) -> dict[str, float]:
    """Red of the chosen image, by prompt."""
    rows = store.sql("select prompt, chosen from preferences where labeler = $who", {"who": labeler}).to_pylist()
    reds = {}
    for row in rows:
        pixel = store.image(row["chosen"]).getpixel((0, 0))
        assert isinstance(pixel, tuple)
        reds[row["prompt"]] = pixel[0]
    return reds


def test_dir_shows_the_public_names_and_nothing_else():
    names = {*PUBLIC.split(), "compare", "open_store", "__version__"}
    assert set(dir(prefloop)) == names
    for name in names:
        assert getattr(prefloop, name)
    assert set(prefloop.__all__) | {"__version__"} == names
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'; it has Comparison"):
        prefloop.nonsense  # noqa: B018


def test_a_stage_asked_of_the_package_says_where_it_is():
    script = "import prefloop\ntry: prefloop.evaluate\nexcept AttributeError as error: print(error)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "prefloop.open_store(path).evaluate(...)" in ended.stdout


def test_import_prefloop_imports_no_other_package_and_opening_a_store_no_torch(tmp_path: Path):
    script = f"""
import sys
before = set(sys.modules)
import prefloop
print({{name.split(".")[0] for name in set(sys.modules) - before}} - set(sys.stdlib_module_names))
prefloop.open_store({str(tmp_path / "s")!r}, create=True).sql("select 1")
for name in prefloop.__all__: getattr(prefloop, name)
print({{"torch", "diffusers", "transformers", "typer"}} & set(sys.modules))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines() == ["{'prefloop'}", "set()"]


def test_every_function_has_an_example_and_an_annotated_result():
    assert {name for name in dir(prefloop.Store) if not name.startswith("_")} == set(METHODS)
    functions = [prefloop.open_store, prefloop.compare, *(getattr(prefloop.Store, name) for name in METHODS)]
    for function in functions:
        assert "Example:" in (inspect.getdoc(function) or ""), function
        code = function.fget if isinstance(function, property) else function
        assert code is not None
        assert "return" in code.__annotations__, function


def test_a_store_is_created_only_on_request(tmp_path: Path):
    with pytest.raises(prefloop.PrefloopError, match="create=True"):
        prefloop.open_store(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert prefloop.open_store(tmp_path / "some", create=True).sql("select 1 as x").to_pylist() == [{"x": 1}]
    assert prefloop.open_store(str(tmp_path / "some")).path == tmp_path / "some"


def test_sql_only_reads_and_its_times_have_a_zone(pairs: prefloop.Store):
    with pytest.raises(prefloop.UsageError):
        pairs.sql("delete from prompts")
    frame = pairs.sql("select created, prompt from meta, prompts order by prompt").to_pandas()
    assert str(frame["created"].dt.tz) == "UTC"
    assert list(frame["prompt"]) == ["one", "two"]


def test_an_object_scores_and_a_second_call_finds_nothing_to_do(pairs: prefloop.Store):
    seen = Redness.seen
    assert pairs.relabel(scorers=Redness())["new_labels"] == 2
    assert redder(pairs, "redness") == {"one": 250, "two": 120}
    again = pairs.relabel(prefloop.RelabelConfig(), scorers=[Redness()])
    assert (again["new_labels"], Redness.seen - seen) == (0, 4)


def test_objects_are_known_only_during_the_call(pairs: prefloop.Store):
    pairs.relabel(scorers=Redness())
    with pytest.raises(prefloop.UsageError, match="unknown scorer 'redness'"):
        pairs.relabel(scorers="redness")
    with pytest.raises(prefloop.UsageError, match=r"Redness is a class; give an object of it, Redness\(\)"):
        pairs.relabel(scorers=Redness)  # type: ignore[arg-type]  # what the message is for
    with pytest.raises(prefloop.UsageError, match="two scorers are named redness"):
        pairs.relabel(scorers=[Redness(), Redness()], rule="majority")
    with pytest.raises(prefloop.UsageError, match="'object' is not a scorer: it has no name, revision"):
        pairs.relabel(scorers=object())  # type: ignore[arg-type]


def test_a_function_decides_ties_and_leaves_pairs_out(pairs: prefloop.Store):
    def far_apart(scores: prefloop.PairScores) -> np.ndarray:
        """Darkness decides; a difference of red below 50 is left out."""
        redness, darkness = scores.difference.T
        return np.where(abs(redness) < 50, np.nan, darkness)

    before = dict(RULES)
    summary = pairs.relabel(scorers=[Redness(), Darkness()], rule=far_apart, labeler="far")
    # reds 10 and 250 differ by 240, and the darker one has 10; 100 and 120 differ by 20
    assert redder(pairs, "far") == {"one": 10}
    assert summary["labels"]["undecided"] == 1
    assert before == RULES
    tied = pairs.relabel(scorers=Redness(), rule=lambda scores: 0 * scores.difference[:, 0], labeler="tied")
    assert tied["labels"]["tie"] == 2


@pytest.mark.slow(reason="labels a store several times")
def test_a_changed_rule_needs_another_labeler_and_the_same_one_does_not(pairs: prefloop.Store):
    def by_red(scores: prefloop.PairScores) -> np.ndarray:
        return scores.difference[:, 0]

    assert pairs.relabel(scorers=Redness(), rule=by_red, labeler="mine")["new_labels"] == 2
    assert pairs.relabel(scorers=Redness(), rule=by_red, labeler="mine")["new_labels"] == 0

    by_less_red = lambda scores: -scores.difference[:, 0]  # noqa: E731
    with pytest.raises(prefloop.UsageError, match="the labeler 'mine' exists and decides by"):
        pairs.relabel(scorers=Redness(), rule=by_less_red, labeler="mine")
    for text in ("x.difference[:, 0]", "-x.difference[:, 0]"):  # without source code, as typed into an interpreter
        pairs.relabel(scorers=Redness(), rule=eval(f"lambda x: {text}"), labeler=text)
    names = pairs.sql("select distinct config ->> '$.rule' as rule from labelers where labeler <> 'mine'")
    assert names.num_rows == 2  # both functions are named <lambda>


def test_a_rule_that_gives_something_else_is_refused(pairs: prefloop.Store):
    with pytest.raises(
        prefloop.UsageError, match="the rule <lambda> must give one margin per pair, 2 numbers; it gave 2x1"
    ):
        pairs.relabel(scorers=Redness(), rule=lambda scores: scores.difference, labeler="wrong")
    with pytest.raises(prefloop.UsageError, match="a rule must be a function of PairScores, got 3"):
        pairs.relabel(scorers=Redness(), rule=3)  # type: ignore[arg-type]


def test_a_rule_in_logits_gives_its_own_probability(pairs: prefloop.Store):
    rule = prefloop.Rule(
        signed_margin=lambda scores: np.full(len(scores.a), np.log(3.0)), summary="three to one", unit="logits"
    )
    pairs.relabel(scorers=Redness(), rule=rule, labeler="three")
    # odds of three to one: 3/4
    assert pairs.sql("select p_chosen from preferences where labeler = 'three'")["p_chosen"].to_pylist() == [0.75, 0.75]


def test_settings_that_do_not_exist_or_are_missing_are_named(pairs: prefloop.Store):
    with pytest.raises(prefloop.UsageError, match="GenerateConfig has no prompt; it has auto_batch_size, batch_size"):
        pairs.generate(prompt="a fox")
    with pytest.raises(prefloop.UsageError, match="TrainConfig needs output_dir and labelers"):
        pairs.train()


def test_an_image_that_is_not_there_is_named(pairs: prefloop.Store):
    with pytest.raises(prefloop.UsageError, match="'fox' is not an image's id"):
        pairs.image("fox")
    with pytest.raises(prefloop.UsageError, match="has no image 00000000-0000-0000-0000-000000000001"):
        pairs.image("00000000-0000-0000-0000-000000000001")


def test_saved_queries_take_parameters(pairs: prefloop.Store):
    pairs.relabel(scorers=Redness())
    closest = pairs.saved_query("closest-pairs", labeler="redness", n=1).to_pylist()
    assert [row["prompt"] for row in closest] == ["two"]  # 20 apart, not 240


def test_compare_weighs_prompts_the_same():
    # "one" wins both of its pairs, "two" loses its only one: (1 + 0) / 2, not 2 / 3
    result = prefloop.compare([0, 0, 0], [1, 1, -1], ["one", "one", "two"])
    assert (result.win_rate, result.n_prompts, result.wins, result.losses) == (0.5, 2, 2, 1)
    with pytest.raises(ValueError, match="must be of one length"):
        prefloop.compare([0, 0], [1], ["one", "two"])
