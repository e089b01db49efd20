"""What a run's tables show: each diagnosis, the borders between them, early stopping, and the plot."""

import csv
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from prefloop.train import TrainConfig
from prefloop.train.methods import METHODS
from prefloop.train.monitor.beta_probe import beta_for_dpo_weight
from prefloop.train.monitor.diagnose import diagnose
from prefloop.train.monitor.evidence import should_stop, summarize
from prefloop.train.monitor.plots import plot_training
from prefloop.train.monitor.tables import read_rows

BINS = 4
INTERVAL = ("implicit_accuracy_low", "implicit_accuracy_high")


def metrics(steps: int = 100, **last: Any) -> list[dict[str, Any]]:
    """A row every ten steps: the first is that of a run that begins, the others show `last`."""
    first = {"loss": 0.7, "implicit_accuracy": 0.52, "dpo_weight": 0.5, "grad_norm": 3.0, "learning_rate": 1e-3}
    return [
        {"step": step, "chosen_error_delta": 0.0, "rejected_error_delta": 0.0, "margin": 0.1}
        | (first if step == 10 else first | last)
        for step in range(10, steps + 1, 10)
    ]


def validation_pass(
    step: int,
    accuracy: float = 0.5,
    *,
    chosen: float = 0.0,
    rejected: float = 0.0,
    reach: float = 0.04,
    n_pairs: int = 200,
    n_prompts: int | None = None,
    reference: bool = True,
) -> list[dict[str, Any]]:
    """The rows of one pass. `chosen` and `rejected` are changes relative to the reference's errors, 0.2 and 0.25."""
    row = {
        "step": step,
        "timestep_low": 0,
        "timestep_high": 1000,
        "n_pairs": n_pairs,
        "n_prompts": n_pairs if n_prompts is None else n_prompts,
        "chosen_error": 0.2 * (1 + chosen),
        "ref_chosen_error": 0.2 if reference else "",
        "rejected_error": 0.25 * (1 + rejected),
        "ref_rejected_error": 0.25 if reference else "",
        "margin": 0.0 if reference else "",
        "implicit_accuracy": accuracy if reference else "",
        "implicit_accuracy_low": accuracy - reach if reference else "",
        "implicit_accuracy_high": accuracy + reach if reference else "",
        "dpo_weight": 0.5 if reference else "",
    }
    bins = [
        row | {"bin": str(k), "timestep_low": k * 1000 // BINS, "timestep_high": (k + 1) * 1000 // BINS}
        for k in range(BINS)
    ]
    return [row | {"bin": "all"}, *bins]


def passes(*accuracies: float, **last: Any) -> list[dict[str, Any]]:
    """A validation pass every 20 steps, the first at step 0; `last` belongs to the last one."""
    at = len(accuracies) - 1
    return [
        row for k, value in enumerate(accuracies) for row in validation_pass(20 * k, value, **(last if k == at else {}))
    ]


def sft(*errors: float) -> list[dict[str, Any]]:
    """Passes without a reference; changes relative to the first one's error."""
    return [row for k, chosen in enumerate(errors) for row in validation_pass(20 * k, chosen=chosen, reference=False)]


def sft_metrics(**last: Any) -> list[dict[str, Any]]:
    empty = dict.fromkeys(("implicit_accuracy", "margin", "dpo_weight", "chosen_error_delta"), math.nan)
    return [row | empty for row in metrics(**last)]


def config(learning_rate: float = 1e-3, **changes: Any) -> TrainConfig:
    return TrainConfig(output_dir="run", labelers=("redder",), learning_rate=learning_rate, **changes)


def names(rows: list[dict[str, Any]], validation: list[dict[str, Any]]) -> list[str]:
    return [diagnosis.name for diagnosis in diagnose(rows, validation)]


def test_a_run_whose_interval_lies_above_one_half_is_learning():
    found = diagnose(metrics(), passes(0.5, 0.55, 0.6, chosen=0.003, rejected=0.007))
    assert [diagnosis.name for diagnosis in found] == ["learning"]
    # the interval is 0.6 - 0.04 to 0.6 + 0.04
    assert "60.0 % (56.0 to 64.0; 200 pairs of 200 prompts)" in found[0].reason
    assert "chosen +0.30 %, rejected +0.70 %" in found[0].reason
    assert "step 40 of 100" in found[0].advice


def test_a_run_whose_errors_do_not_move_is_not_learning_and_needs_a_higher_rate():
    found = diagnose(metrics(), passes(0.5, 0.52, 0.53, rejected=0.0009), config(0.001))
    assert [diagnosis.name for diagnosis in found] == ["not learning"]
    assert "0.090 %" in found[0].reason
    assert "--learning-rate 0.01 (higher than 0.001)" in found[0].advice


@pytest.mark.parametrize(
    ("last", "name"),
    [
        ({"rejected": 0.0009}, "not learning"),
        ({"rejected": -0.0009}, "not learning"),
        ({"rejected": -0.0011}, "too early to say"),
        ({"rejected": 0.0011}, "too early to say"),  # it moves: the interval may yet leave one half
        ({"chosen": -0.0011}, "too early to say"),
        ({"reach": 0.02}, "learning"),  # slowly, and yet above one half
        ({"n_pairs": 19}, "too early to say"),
        ({"n_pairs": 20}, "not learning"),
    ],
)
def test_not_learning_needs_still_errors_and_an_undecided_interval_and_pairs(last: dict[str, Any], name: str):
    assert names(metrics(), passes(0.5, 0.52, 0.53, **last)) == [name]


def test_a_held_out_accuracy_below_one_half_asks_whether_the_labels_are_swapped():
    (found,) = diagnose(metrics(), passes(0.5, 0.46, 0.42, chosen=0.01, rejected=0.005))
    assert found.name == "not learning"
    assert "42.0 % (38.0 to 46.0;" in found.reason
    assert "are not swapped" in found.advice


def test_nothing_is_said_about_learning_before_enough_steps_at_the_full_rate():
    validation = validation_pass(0) + validation_pass(40, 0.7)
    (early,) = diagnose(metrics(steps=40), validation)
    assert early.name == "too early to say"
    # a run that ends within its warm-up has not reached the full rate, and waiting does not help one that has ended
    assert early.reason == "40 steps since the learning rate was highest, at least 50 are needed"
    assert early.advice == "train longer: --max-train-steps 100 or more"
    assert names(metrics(steps=50), validation_pass(0) + validation_pass(50, 0.7)) == ["learning"]
    warming = [row | {"learning_rate": 1e-6 * row["step"]} for row in metrics(steps=500)]
    assert names(warming, validation_pass(0) + validation_pass(500)) == ["too early to say"]
    warmed = [row | {"learning_rate": 1e-6 * min(row["step"], 450)} for row in metrics(steps=500)]
    assert names(warmed, validation_pass(0) + validation_pass(500)) == ["not learning"]


def test_without_held_out_pairs_it_is_too_early_whatever_the_training_pairs_say():
    (found,) = diagnose(metrics(implicit_accuracy=0.7), [])
    assert found.name == "too early to say"
    assert found.reason.startswith("0 held-out pairs")


def test_empty_tables_are_too_early():
    assert names([], []) == ["too early to say"]


def test_a_chosen_error_far_above_the_references_is_diverging():
    found = diagnose(metrics(), passes(0.5, 0.5, 0.5, chosen=0.5, rejected=0.4), config(0.001))
    assert found[0].name == "diverging"
    assert found[0].reason == "the held-out error of chosen images is +50.0 % relative to the reference's"
    assert "--learning-rate 0.0001 (lower than 0.001)" in found[0].advice
    assert "diverging" not in names(metrics(), passes(0.5, 0.5, 0.5, chosen=0.49, rejected=0.4))


@pytest.mark.parametrize(
    ("last", "diverging"),
    [
        ({"loss": 1.41, "grad_norm": 15.1}, True),  # 2 times 0.7 and 5 times 3.0
        ({"loss": 1.39, "grad_norm": 15.1}, False),
        ({"loss": 1.41, "grad_norm": 14.9}, False),
    ],
)
def test_without_held_out_pairs_loss_and_gradient_norm_must_both_grow_to_diverge(last: dict[str, Any], diverging: bool):
    assert ("diverging" in names(metrics(**last), [])) is diverging


def test_diverging_is_reported_at_any_step():
    assert names(metrics(steps=20), validation_pass(0) + validation_pass(20, chosen=3.0, rejected=2.7)) == ["diverging"]


def test_sft_is_not_advised_to_change_beta():
    (found,) = diagnose(sft_metrics(loss=2.0, grad_norm=50.0), sft(0, 0, 0))
    assert found.name == "diverging"
    assert "beta" not in found.advice


def test_a_run_that_gets_worse_at_both_images_is_named_though_its_implicit_accuracy_looks_fine():
    (found,) = diagnose(metrics(), passes(0.5, 0.55, 0.6, chosen=0.02, rejected=0.05), config(0.0012, beta=20.0))
    assert found.name == "both images are pushed away"
    assert found.reason == (
        "both held-out errors rise above the reference's, the rejected one faster: chosen +2.0 %, rejected +5.0 %; held-out "
        "implicit accuracy, 60.0 %, does not show it"
    )
    # three times 20, a third of 0.0012; the first slope of dpo is 20 / 4, of which 0.4 and 4 are added
    assert found.advice == (
        "start again with one of --beta 60 (higher than 20), --learning-rate 0.0004 (lower than 0.0012), --safeguard 0.9, "
        "--sft-weight 2 or --anchor 20"
    )


def test_errors_that_rise_alike_or_the_chosen_one_more_push_both_images_away_too():
    (found,) = diagnose(metrics(), passes(0.5, 0.55, 0.6, chosen=0.05, rejected=0.02))
    assert found.name == "both images are pushed away"
    assert found.reason.startswith("both held-out errors rise above the reference's: chosen +5.0 %, rejected +2.0 %")
    assert "faster" not in found.reason
    (found,) = diagnose(metrics(), passes(0.5, 0.52, 0.53, chosen=0.0201, rejected=0.0204))
    assert found.reason == "both held-out errors rise above the reference's: chosen +2.0 %, rejected +2.0 %"
    # where accuracy is surely below one half, the labels are looked at first
    (found,) = diagnose(metrics(), passes(0.5, 0.44, 0.40, chosen=0.05, rejected=0.03))
    assert found.advice.startswith("check that chosen and rejected are not swapped, then start again with one of")


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        # what is set already is raised, and the safeguard is not asked for twice
        (
            {"safeguard": 0.9, "anchor": 500.0, "sft_weight": 40.0},
            "--sft-weight 120 (higher than 40) or --anchor 1500 (higher than 500)",
        ),
        ({"reference_draws": 2}, "--safeguard 0.9 or --sft-weight 50"),  # no prediction to be anchored to
        ({"loss": "ipo"}, "--safeguard 0.9, --sft-weight 0.0008 or --anchor 0.008"),  # 0.4 and 4 times 1 / 500
        ({"loss": "hinge"}, "--safeguard 0.9, --sft-weight 200 or --anchor 2000"),
        (
            {"loss": "kto"},
            "--beta 1500 (higher than 500) or --learning-rate 0.00033 (lower than 0.001)",
        ),  # not pairwise
    ],
)
def test_only_options_that_go_with_the_other_settings_are_advised(settings: dict[str, Any], advice: str):
    (found,) = diagnose(metrics(), passes(0.5, 0.55, 0.6, chosen=0.1, rejected=0.2), config(**settings))
    assert found.advice.endswith(advice)
    # each advised option can be added to the settings
    for name, value in re.findall(r"--(safeguard|sft-weight|anchor|beta|learning-rate) ([\d.e+-]+)", found.advice):
        config(**settings | {name.replace("-", "_"): float(value)})


@pytest.mark.parametrize(
    "changes",
    [
        {"chosen": 0.019, "rejected": 0.05},  # the chosen error hardly rises
        {"chosen": -0.03, "rejected": 0.05},  # the chosen error falls
        {"chosen": 0.05, "rejected": 0.019},  # the rejected error hardly rises
    ],
)
def test_a_risen_rejected_error_alone_is_not_a_fault(changes: dict[str, float]):
    assert names(metrics(), passes(0.5, 0.55, 0.6, **changes)) == ["learning"]


def test_a_held_out_accuracy_that_falls_while_training_goes_on_well_is_overfitting():
    (found,) = diagnose(metrics(implicit_accuracy=0.76), passes(0.5, 0.70, 0.66, 0.64))
    assert found.name == "overfitting"
    assert "64.0 % (60.0 to 68.0; 200 pairs of 200 prompts), down from 70.0 % at step 20" in found.reason
    assert "76.0 %" in found.reason
    assert "--max-train-steps 20" in found.advice


@pytest.mark.parametrize(
    ("train_accuracy", "last", "name"),
    [
        (0.74, 0.60, "learning"),  # not high
        (0.76, 0.66, "learning"),  # 0.04 below the best
        (0.76, 0.64, "overfitting"),  # 0.06 below the best
        (0.90, 0.71, "learning"),  # the best itself, and 0.19 below the training pairs
    ],
)
def test_overfitting_needs_a_high_training_accuracy_and_a_fall(train_accuracy: float, last: float, name: str):
    assert names(metrics(implicit_accuracy=train_accuracy), passes(0.5, 0.70, last)) == [name]


def test_memorized_pairs_are_overfitting_even_if_accuracy_never_fell():
    (found,) = diagnose(metrics(implicit_accuracy=0.9), passes(0.5, 0.6, 0.69))
    assert found.name == "overfitting"
    assert "--max-train-steps" not in found.advice  # the last pass is the best
    assert found.advice == "label more prompts, or relax --where"


def test_little_gradient_left_is_saturated():
    (found,) = diagnose(metrics(dpo_weight=0.1, implicit_accuracy=0.74), passes(0.5, 0.7, 0.7))
    assert found.name == "saturated"
    assert "the mean DPO weight is 0.10, 0.50 at the start" in found.reason
    assert "--beta" in found.advice
    assert names(metrics(dpo_weight=0.11), passes(0.5, 0.7, 0.7)) == ["learning"]


def test_a_loss_that_grows_while_the_errors_stay_is_saturated_by_beta_and_not_diverging():
    found = diagnose(metrics(loss=5.0), passes(0.5, 0.52, 0.52, chosen=0.001, rejected=0.002))
    assert [diagnosis.name for diagnosis in found] == ["saturated"]
    assert "0.7 to 5" in found[0].reason
    assert "tenth of the --beta" in found[0].advice
    assert names(metrics(loss=1.39), passes(0.5, 0.6, 0.6, chosen=0.001, rejected=0.002)) == ["learning"]
    for moved in ({"chosen": 0.03, "rejected": 0.01}, {"chosen": 0.01, "rejected": 0.03}):
        assert names(metrics(loss=5.0), passes(0.5, 0.6, 0.6, **moved)) == ["learning"]


def test_a_loss_that_starts_at_zero_is_not_saturated_or_diverging_because_it_has_doubled():
    rows = [row | {"loss": 7e-5 if row["step"] == 10 else 6e-4, "grad_norm": 9.0 * row["step"]} for row in metrics()]
    near, far = ({"chosen": change, "rejected": change} for change in (0.001, 0.015))
    for moved in (near, far):
        for loss, expected in (("dpo", "saturated"), ("nft", "learning")):
            found = diagnose(rows, passes(0.5, 0.6, 0.6, **moved), config=config(loss=loss))
            assert [diagnosis.name for diagnosis in found] == [expected], (moved, loss)


def test_a_lower_beta_is_not_advised_if_the_chosen_error_is_far_from_the_references():
    pushed, saturated = diagnose(metrics(dpo_weight=0.05), passes(0.5, 0.7, 0.7, chosen=0.1, rejected=0.2))
    assert "three times the --beta" in pushed.advice
    assert "beta" not in saturated.advice


def test_several_diagnoses_are_listed_the_worst_first():
    rows = metrics(implicit_accuracy=0.95, dpo_weight=0.05)
    assert names(rows, passes(0.5, 0.7, 0.6, chosen=0.1, rejected=0.2)) == [
        "both images are pushed away",
        "overfitting",
        "saturated",
    ]


def test_beside_diverging_nothing_else_is_said():
    rows = metrics(implicit_accuracy=0.95, dpo_weight=0.05, loss=2.0, grad_norm=20.0)
    assert names(rows, passes(0.5, 0.7, 0.6, chosen=0.1, rejected=0.2)) == ["diverging"]


@pytest.mark.parametrize(
    ("errors", "name"),
    [
        ((0, -0.01, -0.03), "learning"),
        ((0, 0.0, -0.0009), "not learning"),
        ((0, 0.005, 0.01), "too early to say"),
        ((0, -0.03, -0.009), "overfitting"),  # 0.021 above the best
        ((0, -0.03, -0.011), "learning"),
        ((0, 0.3, 0.6), "diverging"),
    ],
)
def test_sft_is_diagnosed_by_the_chosen_error_relative_to_the_first_pass(errors: tuple[float, ...], name: str):
    assert names(sft_metrics(), sft(*errors))[0] == name


def test_the_best_step_of_sft_has_the_lowest_chosen_error_whatever_its_implicit_accuracy():
    validation = [row | {"implicit_accuracy": 0.6 if row["step"] == 40 else 0.5} for row in sft(0, -0.03, -0.01)]
    shown = summarize(sft_metrics(), validation)
    assert (shown.best_step, shown.chosen_rise) == (20, pytest.approx(0.02))
    assert not should_stop(sft_metrics(), validation, 2)
    assert should_stop(sft_metrics(), validation, 1)


def test_the_best_step_is_the_earliest_of_the_best_passes_over_all_timesteps():
    validation = passes(0.5, 0.6, 0.7, 0.7, 0.6)
    validation[1]["implicit_accuracy"] = 0.9  # a bin of step 0
    assert summarize(metrics(), validation).best_step == 40


@pytest.mark.parametrize(
    ("accuracies", "patience", "stop"),
    [
        ((0.6,), 1, False),
        ((0.5, 0.6), 1, False),
        ((0.5, 0.6, 0.59), 1, True),
        ((0.5, 0.6, 0.6), 1, True),  # equal is not better
        ((0.5, 0.6, 0.59), 2, False),
        ((0.5, 0.6, 0.59, 0.58), 2, True),
        ((0.5, 0.6, 0.59, 0.61), 2, False),  # better again
        ((0.5, 0.45, 0.44), 2, True),  # surely worse than the reference: 0.44 + 0.04 is below one half
        ((0.5, 0.49, 0.48), 2, False),  # that may be chance
        ((0.5, 0.53, 0.52), 1, False),  # so may this
        ((0.5, 0.6, 0.52), 1, True),  # it has learned, and lost it again
        ((0.5, 0.6, math.nan, math.nan), 2, False),  # passes without a number do not count
    ],
)
def test_a_run_stops_after_patience_passes_that_are_not_better(
    accuracies: tuple[float, ...], patience: int, stop: bool
):
    validation = [
        row | {"implicit_accuracy_low": 0.5 - 0.04, "implicit_accuracy_high": 0.5 + 0.04} if row["step"] == 0 else row
        for row in passes(*accuracies)
    ]
    assert should_stop(metrics(), validation, patience) is stop


@pytest.mark.parametrize(
    ("steps", "n_pairs", "stop"), [(100, 20, True), (100, 19, False), (50, 20, True), (40, 20, False)]
)
def test_early_stopping_needs_the_evidence_that_a_diagnosis_needs(steps: int, n_pairs: int, stop: bool):
    validation = [
        row for step, value in ((0, 0.5), (10, 0.7), (20, 0.6)) for row in validation_pass(step, value, n_pairs=n_pairs)
    ]
    assert should_stop(metrics(steps), validation, 1) is stop


def test_a_run_also_stops_if_only_the_last_interval_excludes_one_half():
    assert should_stop(metrics(), validation_pass(20, 0.62, reach=0.15) + validation_pass(40, 0.6), 1)
    assert not should_stop(metrics(), validation_pass(20, 0.62, reach=0.15) + validation_pass(40, 0.6, reach=0.15), 1)


def test_fewer_than_ten_held_out_prompts_have_no_interval_and_no_diagnosis():
    none = dict.fromkeys(INTERVAL, math.nan)
    for n_prompts, name in ((9, "too early to say"), (10, "overfitting")):
        validation = passes(0.5, 0.7, 0.6)
        validation = [row | {"n_prompts": n_prompts} | (none if n_prompts < 10 else {}) for row in validation]
        (found,) = diagnose(metrics(implicit_accuracy=0.95), validation)
        assert found.name == name
        assert should_stop(metrics(), validation, 1) is (n_prompts == 10)
        if n_prompts == 9:
            assert found.reason == "9 held-out prompts, at least 10 are needed"
        # without an interval no loss is diagnosed, whatever it looks at
        validation = [row | {"n_prompts": n_prompts} for row in sft(0, -0.05, -0.01)]
        assert names(sft_metrics(), validation) == [name]
        assert should_stop(sft_metrics(), validation, 1) is (n_prompts == 10)


def test_patience_below_one_is_refused():
    with pytest.raises(ValueError, match="patience must be at least 1, got 0"):
        should_stop([], [], 0)


FAULTY: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "both images are pushed away": (metrics(), passes(0.5, 0.55, 0.6, chosen=0.1, rejected=0.2)),
    "overfitting": (metrics(implicit_accuracy=0.95), passes(0.5, 0.7, 0.6)),
    "saturated": (metrics(dpo_weight=0.05), passes(0.5, 0.7, 0.7)),
    "not learning": (metrics(), passes(0.5, 0.42, 0.42)),
    "learning": (metrics(), passes(0.5, 0.6, 0.7, chosen=0.01)),
    "overfitting of sft": (sft_metrics(), sft(0, -0.05, -0.01)),
    "learning of sft": (sft_metrics(), sft(0, -0.05, -0.06)),
}


@pytest.mark.parametrize("name", FAULTY)
@pytest.mark.parametrize(
    ("n_pairs", "steps", "enough"), [(20, 50, True), (19, 50, False), (3, 100, False), (20, 49, False), (200, 2, False)]
)
def test_no_diagnosis_is_given_on_too_few_steps_or_pairs(name: str, n_pairs: int, steps: int, enough: bool):
    rows, validation = FAULTY[name]
    at = [*range(10, steps, 10), steps]
    rows = [row | {"step": step} for step, row in zip(at, rows, strict=False)]
    validation = [row | {"n_pairs": n_pairs, "step": row["step"] * steps // 40} for row in validation]
    assert names(rows, validation) == [name.removesuffix(" of sft") if enough else "too early to say"]


NUMBERS = st.floats(-0.2, 2.5) | st.sampled_from([0.0, 0.02, 0.0201, 0.0204, 0.5, 1.0, math.nan, math.inf])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    steps=st.sampled_from([1, 2, 10, 40, 49, 50, 60, 100]),
    n_pairs=st.sampled_from([0, 1, 3, 19, 20, 200]),
    accuracies=st.lists(st.floats(0.3, 1) | st.sampled_from([0.5, 0.6, 0.7]), min_size=1, max_size=3),
    reach=st.sampled_from([0.0, 0.04, 0.2]),
    changes=st.tuples(NUMBERS, NUMBERS),
    recent=st.tuples(NUMBERS, NUMBERS, st.floats(0, 1), st.floats(0, 0.5)),
    first=st.tuples(st.sampled_from([0.0, 0.7, 1e-6]), st.sampled_from([0.0, 3.0])),
    preference=st.booleans(),
)
def test_no_diagnosis_claims_more_than_its_tables_show(
    steps: int,
    n_pairs: int,
    accuracies: list[float],
    reach: float,
    changes: tuple[float, float],
    recent: tuple[float, float, float, float],
    first: tuple[float, float],
    preference: bool,
):
    shown = dict(zip(("loss", "grad_norm", "implicit_accuracy", "dpo_weight"), recent, strict=True))
    rows = metrics(steps, **shown) or metrics(10, **shown)
    rows[0] |= {"step": min(10, steps), "loss": first[0], "grad_norm": first[1]}
    rows[-1]["step"] = steps
    if not preference:
        rows = [row | dict.fromkeys(("implicit_accuracy", "dpo_weight"), math.nan) for row in rows]
    validation = []
    for at, value in enumerate(accuracies, 1):
        chosen, rejected = changes if at == len(accuracies) else (0.0, 0.0)
        more = {"chosen": chosen, "rejected": rejected, "reach": reach, "n_pairs": n_pairs}
        validation += validation_pass(steps * at // len(accuracies), value, **more) if n_pairs else []
    found = diagnose(rows, validation, config(3e-4))
    shown_names = {diagnosis.name for diagnosis in found}
    risen = 0.2 * (1 + changes[0]) / 0.2 - 1  # as it is read from the table, rounding included
    multiplied = bool(n_pairs) and not risen < (0.5 if n_pairs >= 20 else 1.0)
    broken = not math.isfinite(recent[0]) or (bool(n_pairs) and not (math.isfinite(changes[0] + changes[1])))
    grown = recent[0] >= 2 * first[0] > 0 and recent[1] >= 5 * first[1] > 0 and steps >= 50
    if "diverging" in shown_names:
        assert len(found) == 1
        assert broken or multiplied or grown
    elif steps < 50 or n_pairs < 20:
        assert shown_names == {"too early to say"}
    excludes_one_half = accuracies[-1] - reach > 0.5 or accuracies[-1] + reach < 0.5 or max(accuracies) - reach > 0.5
    if preference and not excludes_one_half:
        assert not shown_names & {"learning", "overfitting"}
    if "both images are pushed away" in shown_names:
        assert preference
        assert min(changes) > 0.0199
    for diagnosis in found:
        assert "nan" not in diagnosis.reason + diagnosis.advice
        assert "inf" not in diagnosis.reason + diagnosis.advice
        for pattern in (
            r"from (\S+) to (\S+)",
            r"is (\S+) .* down from (\S+) at",
            r"faster: chosen (\S+), rejected (\S+)",
        ):
            for before, after in re.findall(pattern, diagnosis.reason):
                assert before != after, diagnosis
        for rate in re.findall(r"--learning-rate (\S+)", diagnosis.advice):
            assert rate in ("3e-05", "0.0001", "0.003"), diagnosis  # a tenth, a third and ten times of 3e-4


def test_advice_is_a_multiple_of_the_learning_rate_that_the_user_gave_not_of_the_scheduled_one():
    rows, validation = metrics(learning_rate=7.7e-4), passes(0.5, 0.55, 0.6, chosen=0.1, rejected=0.2)
    # with --scale-lr the tables hold 64 times what was typed
    scaled = [row | {"learning_rate": 64 * row["learning_rate"]} for row in rows]
    for table in (rows, scaled):
        (found,) = diagnose(table, validation, config(2e-3))
        assert "--learning-rate 0.00067 (lower than 0.002)" in found.advice
    (found,) = diagnose(rows, validation)
    assert "a third of the --learning-rate" in found.advice


def test_an_error_that_is_not_a_finite_number_is_diverging():
    (found,) = diagnose(metrics(20), validation_pass(0) + validation_pass(20, chosen=math.nan, n_pairs=3))
    assert (found.name, found.reason) == ("diverging", "the held-out chosen error is not a finite number")
    (found,) = diagnose(metrics(20), validation_pass(0) + validation_pass(20, rejected=math.inf, n_pairs=3))
    assert (found.name, found.reason) == ("diverging", "the held-out rejected error is not a finite number")
    (found,) = diagnose(metrics(20, loss=math.nan), [])
    assert (found.name, found.reason) == ("diverging", "the loss is not a finite number")
    assert names(metrics(), validation_pass(0) + validation_pass(20, chosen=math.nan) + validation_pass(40, 0.6)) == [
        "learning"
    ]


@pytest.mark.parametrize(("n_pairs", "n_prompts"), [(3, 3), (30, 9)])
@pytest.mark.parametrize(("chosen", "name"), [(0.99, "too early to say"), (1.0, "diverging")])
def test_few_held_out_pairs_or_prompts_must_show_twice_the_error_to_diverge(
    chosen: float, name: str, n_pairs: int, n_prompts: int
):
    last = validation_pass(20, chosen=chosen, n_pairs=n_pairs, n_prompts=n_prompts)
    assert names(metrics(20), validation_pass(0) + last) == [name]


def test_training_numbers_alone_diverge_only_after_the_least_steps():
    assert names(metrics(50, loss=2.0, grad_norm=50.0), []) == ["diverging"]
    assert names(metrics(40, loss=2.0, grad_norm=50.0), []) == ["too early to say"]
    # held-out errors that stay near the reference's say that it is beta
    grown = metrics(loss=2.0, grad_norm=50.0)
    assert names(grown, passes(0.5, 0.6, 0.6, chosen=0.001)) == ["saturated"]
    assert names(grown, passes(0.5, 0.6, 0.6, chosen=0.001, n_pairs=19)) == ["diverging"]


def test_a_fall_within_the_interval_is_not_overfitting():
    rows = metrics(implicit_accuracy=0.8)
    assert names(rows, passes(0.5, 0.70, 0.64, reach=0.04)) == ["overfitting"]
    assert names(rows, passes(0.5, 0.70, 0.64, reach=0.07)) == ["learning"]
    assert names(rows, passes(0.5, 0.70, 0.66, reach=0.02)) == ["learning"]  # out of it, and little
    assert names(rows, passes(0.5, 0.70, 0.52, reach=0.04)) == ["overfitting"]  # to chance


def test_a_fall_from_a_pass_that_may_have_been_chance_is_not_overfitting():
    rows = metrics(implicit_accuracy=0.8)
    assert names(
        rows, validation_pass(0) + validation_pass(20, 0.60, reach=0.12) + validation_pass(40, 0.52, chosen=0.01)
    ) == ["too early to say"]
    assert names(rows, validation_pass(0) + validation_pass(20, 0.60, reach=0.09) + validation_pass(40, 0.52)) == [
        "overfitting"
    ]


def test_a_gap_inside_the_interval_is_not_overfitting():
    rows = metrics(implicit_accuracy=0.8)  # 0.22 above the held-out accuracy
    assert names(rows, passes(0.5, 0.70, 0.58, reach=0.25, chosen=0.01)) == ["too early to say"]
    assert names(rows, passes(0.5, 0.70, 0.58, reach=0.2)) == ["overfitting"]


def test_numbers_that_print_alike_are_not_reported_as_a_change():
    rows = [row | {"loss": 0.0, "grad_norm": 0.0} for row in metrics()]
    assert names(rows, passes(0.5, 0.6, 0.6, chosen=0.001)) == ["learning"]
    assert names(rows, []) == ["too early to say"]
    assert names([row | {"loss": 0.1 * row["step"]} for row in rows], []) == ["too early to say"]  # no norm has grown


def test_sft_is_not_diagnosed_by_its_accuracy():
    low = {"implicit_accuracy": 0.4, "implicit_accuracy_low": 0.36, "implicit_accuracy_high": 0.44}
    assert names(sft_metrics(), [row | low for row in sft(0, -0.03, -0.04)]) == ["learning"]
    assert names(sft_metrics(), [row | low for row in sft(0, -0.03, 0.0)]) == ["overfitting"]


def test_the_full_rate_begins_with_the_first_row_that_has_it_though_means_round():
    rows = [row | {"learning_rate": 1e-3 * (1 + 1e-9 * row["step"])} for row in metrics()]
    assert summarize(rows, []).steps_at_full_rate == 100


def test_memorized_pairs_beside_an_accuracy_at_chance_ask_for_more_prompts_not_steps():
    (found,) = diagnose(metrics(implicit_accuracy=0.9), passes(0.5, 0.52, 0.52, chosen=0.01))
    assert found.name == "too early to say"
    assert "90.0 %" in found.reason
    assert "label more prompts" in found.advice
    assert "steps" not in found.advice


def test_errors_are_compared_with_the_references_of_the_same_pass_not_of_an_earlier_one():
    shown = summarize(
        metrics(), validation_pass(60, chosen=0.03, rejected=0.04) + validation_pass(80, chosen=0.05, rejected=-0.02)
    )
    assert (shown.chosen_change, shown.rejected_change) == (pytest.approx(0.05), pytest.approx(-0.02))


def test_sft_does_not_push_away_a_rejected_image_it_never_sees():
    rows = validation_pass(0, reference=False) + validation_pass(100, chosen=0.03, rejected=0.05, reference=False)
    assert names(sft_metrics(), rows) == ["overfitting"]


def test_recent_numbers_are_means_of_five_rows():
    rows = metrics()
    rows[-1]["loss"], rows[-6]["loss"] = 1.7, 100.0  # the sixth last is not among them
    assert summarize(rows, []).loss == pytest.approx((4 * 0.7 + 1.7) / 5)


def test_the_beta_at_which_the_mean_margin_has_a_dpo_weight_of_one_fifth_is_worked_by_hand():
    # the last five rows have logits of mean 0.2 at beta 500: a margin of 2 * 0.2 / 500 = 0.0008 in errors.
    # sigmoid(-u) = 0.2 at u = log 4 = 1.386294, and u = beta / 2 * 0.0008, so beta = 2 * 1.386294 / 0.0008 = 3465.74
    rows = metrics()
    for row, margin in zip(rows[-5:], (0.1, 0.3, 0.2, 0.25, 0.15), strict=True):
        row["margin"] = margin
    assert beta_for_dpo_weight(rows, config()) == pytest.approx(3465.74, abs=0.01)
    assert 1 / (1 + math.exp(0.5 * 3465.74 * 0.0008)) == pytest.approx(0.2, abs=1e-5)
    # the same logits at another beta are other margins
    assert beta_for_dpo_weight(rows, config(beta=50.0)) == pytest.approx(346.574, abs=0.001)


def test_without_evidence_no_beta_is_suggested():
    assert beta_for_dpo_weight(metrics(), config()) == pytest.approx(500 * math.log(4) / 0.1)
    for at in (-5, -1):  # a mean that noise could have made
        rows = metrics()
        rows[at]["margin"] = 0.0
        assert beta_for_dpo_weight(rows, config()) is None
    rows = metrics()
    rows[-6]["margin"] = -1.0  # too long ago to count
    assert beta_for_dpo_weight(rows, config()) is not None
    assert beta_for_dpo_weight(metrics(50), config()) is None  # four rows after the first
    assert beta_for_dpo_weight(metrics(60), config()) is not None
    warming = [row | {"learning_rate": 1e-6 * row["step"]} for row in metrics(500)]
    assert beta_for_dpo_weight(warming, config()) is None
    assert beta_for_dpo_weight([row | {"margin": ""} for row in metrics()], config()) is None
    assert beta_for_dpo_weight([], config()) is None
    # the other losses do not weight pairs by it
    assert [loss for loss in METHODS if beta_for_dpo_weight(metrics(), config(loss=loss)) is not None] == ["dpo"]


def write(path: Path, rows: list[dict[str, Any]], columns: list[str]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def test_tables_in_files_give_the_diagnoses_of_tables_in_memory(tmp_path: Path):
    rows, validation = metrics(), passes(0.5, 0.55, 0.6, chosen=0.003, rejected=0.007)
    write(tmp_path / "metrics.csv", rows, list(rows[0]))
    write(tmp_path / "validation.csv", validation, list(validation[0]))
    assert diagnose(read_rows(tmp_path / "metrics.csv"), read_rows(tmp_path / "validation.csv")) == diagnose(
        rows, validation
    )
    assert read_rows(tmp_path / "no.csv") == []


def test_tables_that_version_0_1_wrote_are_read_and_plotted(tmp_path: Path):
    (tmp_path / "metrics.csv").write_text("step,loss,gradient_left\n10,0.7,0.5\n20,0.6,0.4\n")
    old = "step,bin,n_pairs,implicit_accuracy,low,high\n0,all,42,0.5,0.4,0.6\n0,0,42,0.5,0.4,0.6\n"
    (tmp_path / "validation.csv").write_text(old)
    assert [row["dpo_weight"] for row in read_rows(tmp_path / "metrics.csv")] == ["0.5", "0.4"]
    row = read_rows(tmp_path / "validation.csv")[0]
    assert [row[name] for name in INTERVAL] == ["0.4", "0.6"]
    assert plot_training(tmp_path).exists()


@pytest.mark.parametrize(
    ("rows", "validation"),
    [
        (metrics(), passes(0.5, 0.55, 0.6, chosen=0.003, rejected=0.007)),
        (metrics(loss=14.0, grad_norm=500.0), passes(0.5, 0.5, 0.5, chosen=10, rejected=9)),
        (metrics(loss=1.4e6, grad_norm=5e5), passes(0.5, 0.5, 0.5, chosen=1000, rejected=900)),
        (sft_metrics(), sft(0, -0.01, -0.03)),
        (metrics(), passes(0.5, math.nan, 0.6, reach=math.nan)),
        (metrics(), [row | dict.fromkeys(INTERVAL, "") for row in passes(0.5, 0.55, 0.6)]),
        (metrics(), []),
        (metrics(), None),
        ([], []),
    ],
    ids=[
        "full",
        "diverging",
        "diverging far",
        "sft",
        "some intervals",
        "no intervals",
        "empty validation",
        "no validation",
        "nothing yet",
    ],
)
def test_a_run_is_plotted_from_whatever_its_tables_hold(
    rows: list[dict[str, Any]],
    validation: list[dict[str, Any]] | None,
    tmp_path: Path,
    recwarn: pytest.WarningsRecorder,
):
    write(tmp_path / "metrics.csv", rows, list(metrics()[0]))
    if validation is not None:
        write(tmp_path / "validation.csv", validation, list(validation_pass(0)[0]))
    path = plot_training(tmp_path)
    assert path == tmp_path / "training.png"
    with Image.open(path) as image:
        assert (image.format, image.size) == ("PNG", (1600, 900))
        pixels = np.asarray(image.convert("L"))
    assert len(np.unique(pixels)) > 16  # not blank
    for border in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]):
        assert border.min() == 255  # nothing is cut off
    assert not [warning.message for warning in recwarn if issubclass(warning.category, (RuntimeWarning, UserWarning))]


def test_a_run_of_one_row_has_a_point_in_each_plot(tmp_path: Path):
    write(tmp_path / "metrics.csv", metrics(10), list(metrics()[0]))
    with Image.open(plot_training(tmp_path)) as image:
        left = np.asarray(image.convert("RGB"))[:, :520]
    blue = (left == (0x00, 0x72, 0xB2)).all(-1)
    # loss above; DPO weight and gradient norm share the lower half
    assert all(part.any() for part in np.split(blue, [450, 650]))
