"""Run the rounds: each generates, labels, trains and evaluates. What is finished is not done again."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from uuid import UUID

from ..core.json import plain
from ..core.signals import StopSignal
from ..core.stats import interval_text
from ..core.text import percent, plural
from ..eval.best import judged_prompts
from ..eval.lost import lost_images
from ..eval.result import ImagePair
from ..eval.stage import run_evaluation
from ..generate.defaults import resolve_defaults
from ..generate.prompts import read_prompts
from ..generate.stage import plan_generations, run_plan
from ..models.lineage import read_result
from ..models.resolve import find_model
from ..relabel.stage import relabel
from ..store import PairStore, load_image
from ..store.condition import condition
from ..store.query import ask
from ..store.runs import run
from ..train.config import TrainConfig
from ..train.stage import train
from .best import best_round
from .checks import (
    NothingToTrainOnError,
    open_store,
    refuse_impossible_loop,
    refuse_nothing_to_train_on,
    refuse_other_loop,
    refuse_pairs_without_round,
)
from .config import LoopSettings
from .guards import measure_prompts
from .prompts import prompts_of_round
from .record import SUMMARY, RoundResult, read_round, write_round
from .result import keep_result
from .settings_file import SETTINGS, claimed, identity, write_settings
from .stopping import stop_reason

RESULT = "result"
N_SAMPLES = 8


def run_loop(settings: LoopSettings, say: Callable[[str], None] = print) -> dict:
    """Run the rounds that are missing, then keep the best one and write the report.

    Args:
        say: told what each round found, and at the end what was kept.

    Returns:
        rounds (of each what its RoundResult has, without the prompts), best (its number, the scorers it was chosen by, and
        their results on the other half of the evaluation prompts), stopped (why), result and report (paths), store.

    Raises:
        UsageError: if the folder holds a loop with other settings or something else, or a stage refuses its settings.
    """
    loop = settings.loop
    folder = Path(loop.output_dir)
    with claimed(settings), StopSignal().listening() as stop:
        rounds = finished_rounds(folder)
        stopped = stop_reason(rounds, loop) if rounds else None
        for result in rounds:
            say(round_line(result, loop.rounds))
        images = ""
        if stopped is None:
            with stop.at_once():
                images = refuse_impossible_loop(settings, rounds, say)
            # the first file in a new folder: by it the loop knows the others as its own
            if not (folder / SETTINGS).exists():
                write_settings(settings)
        store = open_store(settings, rounds)
        if stopped is None:
            with store.stage_lock("loop", "rounds"):
                refuse_other_loop(settings, store, images)
                write_settings(settings)
                stopped = _run_rounds(settings, store, rounds, images, stop, say)
        best = best_round(rounds)
        from .report import write_report

        page = write_report(settings, rounds, best, stopped, store)
        keep_result(folder / RESULT, loop.round_dir(best.number), store)
    return plain(
        {
            "rounds": [{k: v for k, v in asdict(result).items() if k != "prompts"} for result in rounds],
            "best": asdict(best) | {"beats_base": best.beats_base},
            "stopped": stopped,
            "result": str(folder / RESULT),
            "report": str(page),
            "store": str(store.path),
        }
    )


def finished_rounds(folder: Path) -> list[RoundResult]:
    """The rounds up to the first that is not finished."""
    rounds: list[RoundResult] = []
    while (result := read_round(record_path(folder, len(rounds) + 1))) is not None:
        rounds.append(result)
    return rounds


def record_path(folder: Path, number: int) -> Path:
    return folder / f"round-{number}.json"


def _run_rounds(
    settings: LoopSettings,
    store: PairStore,
    rounds: list[RoundResult],
    images: str,
    stop: StopSignal,
    say: Callable[[str], None],
) -> str:
    """Add rounds until there is a reason to stop, and return it."""
    folder = Path(settings.loop.output_dir)
    while True:
        number = len(rounds) + 1
        try:
            result = run_round(settings, number, store, images, stop)
        except NothingToTrainOnError as error:
            if not rounds:
                raise
            return str(error)
        write_round(record_path(folder, number), result)
        say(round_line(result, settings.loop.rounds))
        rounds.append(result)
        stop.check(f"round {number} is in {folder}")
        if (reason := stop_reason(rounds, settings.loop)) is not None:
            return reason


def run_round(settings: LoopSettings, number: int, store: PairStore, images: str, stop: StopSignal) -> RoundResult:
    """One round, from the images to the evaluation; what of it is in the store or the loop's folder is not done again.

    Args:
        images: from `refuse_impossible_loop`.

    Raises:
        NothingToTrainOnError: if its images cannot be told apart.
    """
    loop, seconds = settings.loop, dict[str, float]()

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        seconds[stage] = seconds.get(stage, 0.0) + time.monotonic() - start
        stop.check(f"{stage} of round {number} is done")

    # `browse` looks for the report in the folder, from wherever it is started
    record = {
        "round": number,
        "loop": identity(settings),
        "images": images,
        "output_dir": str(Path(loop.output_dir).absolute()),
    }
    with run(store, "round", record) as this_round:
        with timed("generate"):
            generated = _generate(settings, number, store)
        with timed("relabel"):
            labelled = relabel(settings.relabel_config(), store)
        config = settings.train_config(number, labelled["labeler"])
        refuse_nothing_to_train_on(number, store, config)
        with timed("train"):
            trained = _train(config, store, stop)
        with timed("eval"):
            evaluation, against_base = run_evaluation(settings.eval_config(number, loop.model), store)
            pairs = evaluation.comparisons[0].pairs
            against_previous = against_base
            if number > 1:
                previous = settings.eval_config(number, loop.model_before(number))
                against_previous = run_evaluation(previous, store)[1]
            images_of_pairs = (image for pair in pairs for image in (pair.base, pair.tuned))
            lost = lost_images(store, images_of_pairs, "the measurements of images")
            guards, base_guards = (
                measure_prompts([load_image(store.image_path(image)) for image in of] for of in images_of_prompts)
                for images_of_prompts in _images([pair for pair in pairs if lost.isdisjoint((pair.base, pair.tuned))])
            )
        undecided = _undecided_prompts(store, number, config)
        result = RoundResult(
            number=number,
            n_prompts=generated["prompts"],
            n_images=generated["images"],
            n_pairs=trained["n_pairs"],
            n_undecided_prompts=undecided,
            labeler=labelled["labeler"],
            train=trained,
            against_base=against_base,
            against_previous=against_previous,
            prompts=judged_prompts(pairs),
            guards=guards,
            base_guards=base_guards,
            samples=_samples(pairs, loop.seed),
            seconds=seconds,
        )
        this_round.summary |= {
            "n_prompts": result.n_prompts,
            "n_images": result.n_images,
            "n_pairs": result.n_pairs,
            "n_undecided_prompts": undecided,
            "model": str(loop.round_dir(number)),
            "seconds": seconds,
        }
    return result


def _generate(settings: LoopSettings, number: int, store: PairStore) -> dict:
    config = settings.generate_config(number)
    model = find_model(config.model)
    config = resolve_defaults(config, model, store)
    prompts = read_prompts(config.prompts or "", config.limit)
    loop = settings.loop
    chosen = prompts_of_round(prompts, number, loop.prompts_per_round, loop.seed)
    planned = plan_generations(config, model, chosen, store)
    if number == 1:
        refuse_pairs_without_round(planned, store)
    return run_plan(planned, store)


def _train(config: TrainConfig, store: PairStore, stop: StopSignal) -> dict:
    """The summary of the training; a finished one is not repeated, since the loop's settings are those it began with."""
    output = Path(config.output_dir)
    if read_result(output) is None:
        train(config, store, stop=stop)
    record = read_result(output) or {}
    return {name: record.get(name) for name in SUMMARY}


def _images(pairs: Sequence[ImagePair]) -> tuple[list[list[UUID]], list[list[UUID]]]:
    """The images of each prompt, of the tuned model and of the base."""
    by_prompt: dict[str, list[ImagePair]] = {}
    for pair in pairs:
        by_prompt.setdefault(pair.prompt, []).append(pair)
    return (
        [[pair.tuned for pair in of_prompt] for of_prompt in by_prompt.values()],
        [[pair.base for pair in of_prompt] for of_prompt in by_prompt.values()],
    )


def _undecided_prompts(store: PairStore, number: int, config: TrainConfig) -> int:
    """Prompts of the round that have pairs, none of which the condition selects."""
    query = f"""
        select count(*) as n from (
            select prompt_id from pairs join run_rounds using (run_id) where round = $round and source <> 'eval'
            except
            select prompt_id from (select * from training_preferences where labeler = $labeler) preferences
            where round = $round and ({condition(config.where or "true")})
        )"""
    return ask(store, query, parameters={"round": number, "labeler": config.labelers[0]})["n"][0].as_py()


def _samples(pairs: Sequence[ImagePair], seed: int) -> list[tuple[str, str, str]]:
    """A few prompts, the same in every round."""
    first = {pair.prompt: pair for pair in reversed(pairs)}
    chosen = random.Random(seed).sample(sorted(first), min(N_SAMPLES, len(first)))
    return [(prompt, str(first[prompt].base), str(first[prompt].tuned)) for prompt in chosen]


def round_line(result: RoundResult, n_rounds: int) -> str:
    """What a round found, in a line."""
    rates = [
        f"{name} {percent(row['win_rate'])} ({interval_text(row['win_rate_low'], row['win_rate_high'], row['n_prompts'])})"
        + (" in-sample" if row["in_sample"] else "")
        for name, row in result.against_base["scorers"].items()
    ]
    return (
        f"round {result.number} of {n_rounds}: {plural(result.n_images, 'image')} for {plural(result.n_prompts, 'prompt')}, "
        f"{plural(result.n_pairs, 'pair')}; win rates against the base: {', '.join(rates)}"
    )
