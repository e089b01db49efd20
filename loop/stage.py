"""Run the rounds: each generates, labels, trains and evaluates. What is finished is not done again."""

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from uuid import UUID

import numpy as np

from ..core.errors import UsageError
from ..core.hashing import RESULT_FILE
from ..core.json import plain
from ..core.signals import StopSignal
from ..core.stats import interval_text
from ..core.text import plural
from ..eval.result import Evaluation, ImagePair
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
from ..train.export.result import write_card
from ..train.run_folder.publish import publish
from ..train.run_folder.readme import README
from ..train.stage import train
from .best import best_round
from .config import LoopSettings
from .guards import measure_prompts
from .prompts import prompts_of_round
from .record import JudgedPrompt, RoundResult, read_round, write_round
from .settings_file import begun, identity
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
    folder = Path(loop.dir)
    with begun(settings), StopSignal().listening() as stop:
        store = PairStore.create(loop.store_path)
        _refuse_other_loop(settings, store)
        rounds: list[RoundResult] = []
        stopped = None
        while stopped is None:
            number = len(rounds) + 1
            record = folder / f"round-{number}.json"
            result = read_round(record)
            if result is None:
                result = run_round(settings, number, store, stop)
                write_round(record, result)
            say(round_line(result, loop.rounds))
            rounds.append(result)
            stopped = stop_reason(rounds, loop)
            stop.check(f"round {number} is in {folder}")
        best = best_round(rounds)
        _keep(folder / RESULT, loop.round_dir(best.number), store)
        from .report import write_report

        page = write_report(settings, rounds, best, stopped, store)
    return plain(
        {
            "rounds": [{k: v for k, v in asdict(result).items() if k != "prompts"} for result in rounds],
            "best": asdict(best),
            "stopped": stopped,
            "result": str(folder / RESULT),
            "report": str(page),
            "store": str(store.path),
        }
    )


def _refuse_other_loop(settings: LoopSettings, store: PairStore) -> None:
    query = "select distinct config->>'$.loop' from runs where kind = 'round'"
    if {name for (name,) in store.rows(query)} - {identity(settings)}:
        raise UsageError(
            f"the store {store.path} holds the rounds of another loop, and a pair knows only the number of its round; "
            "name another folder with --store"
        )


def run_round(settings: LoopSettings, number: int, store: PairStore, stop: StopSignal) -> RoundResult:
    """One round, from the images to the evaluation; what of it is in the store or the loop's folder is not done again."""
    loop, seconds = settings.loop, dict[str, float]()

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        seconds[stage] = seconds.get(stage, 0.0) + time.monotonic() - start
        stop.check(f"{stage} of round {number} is done")

    with run(store, "round", {"round": number, "loop": identity(settings)}) as this_round:
        with timed("generate"):
            generated = _generate(settings, number, store)
        with timed("relabel"):
            labelled = relabel(settings.relabel_config(), store)
        config = settings.train_config(number, labelled["labeler"])
        with timed("train"):
            trained = _train(config, store, stop)
        with timed("eval"):
            evaluation, against_base = run_evaluation(settings.eval_config(number, loop.model), store)
            against_previous = against_base
            if number > 1:
                previous = settings.eval_config(number, loop.model_before(number))
                against_previous = run_evaluation(previous, store)[1]
            images = _images(evaluation)
            guards = measure_prompts([load_image(store.image_path(image)) for image in of] for of in images["tuned"])
            base_guards = measure_prompts(
                [load_image(store.image_path(image)) for image in of] for of in images["base"]
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
            prompts=judged_prompts(evaluation.pairs),
            guards=guards,
            base_guards=base_guards,
            samples=_samples(evaluation.pairs, loop.seed),
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
    return run_plan(plan_generations(config, model, chosen, store), store)


def _train(config: TrainConfig, store: PairStore, stop: StopSignal) -> dict:
    """The summary of the training; a finished one is not repeated."""
    finished = read_result(Path(config.output_dir))
    if finished is not None and finished.get("config") == json.loads(json.dumps(config.resolved())):
        return finished
    return train(config, store, stop=stop)


def _images(evaluation: Evaluation) -> dict[str, list[list[UUID]]]:
    """The images of each prompt, of both models."""
    by_prompt: dict[str, list[ImagePair]] = {}
    for pair in evaluation.pairs:
        by_prompt.setdefault(pair.prompt, []).append(pair)
    return {
        name: [[getattr(pair, name) for pair in pairs] for pairs in by_prompt.values()] for name in ("base", "tuned")
    }


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


def judged_prompts(pairs: Sequence[ImagePair]) -> list[JudgedPrompt]:
    """Means over the pairs of each prompt, for each scorer that gave both images of a pair finite scores."""
    by_prompt: dict[str, list[ImagePair]] = {}
    for pair in pairs:
        by_prompt.setdefault(pair.prompt, []).append(pair)
    judged = []
    for prompt, of_prompt in by_prompt.items():
        scorers = {}
        for name in of_prompt[0].scores:
            scores = np.array([pair.scores[name] for pair in of_prompt], np.float64)
            base, tuned = scores[np.isfinite(scores).all(axis=1)].T
            if len(base):
                wins = np.where(tuned > base, 1.0, np.where(tuned < base, 0.0, 0.5))
                scorers[name] = (float(wins.mean()), float(base.mean()), float(tuned.mean()))
        judged.append(JudgedPrompt(prompt=prompt, scorers=scorers))
    return judged


def _samples(pairs: Sequence[ImagePair], seed: int) -> list[tuple[str, str, str]]:
    """A few prompts, the same in every round."""
    first = {pair.prompt: pair for pair in reversed(pairs)}
    chosen = random.Random(seed).sample(sorted(first), min(N_SAMPLES, len(first)))
    return [(prompt, str(first[prompt].base), str(first[prompt].tuned)) for prompt in chosen]


def _keep(folder: Path, best: Path, store: PairStore) -> None:
    """Put the best round's model into the loop's result, with a card that has its evaluations."""
    record = read_result(best) or {}
    kept = read_result(folder) if folder.is_dir() else None
    if kept is None or kept.get("files") != record.get("files"):
        folder.mkdir(exist_ok=True)
        with publish(folder) as new:
            for name in [*record.get("files", {}), RESULT_FILE, README]:
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(best / name, new / name)
    write_card(folder, store)


def round_line(result: RoundResult, n_rounds: int) -> str:
    """What a round found, in a line."""
    rates = [
        f"{name} {row['win_rate']:.1%} ({interval_text(row['win_rate_low'], row['win_rate_high'], row['n_prompts'])})"
        + (" in-sample" if row["in_sample"] else "")
        for name, row in result.against_base["scorers"].items()
    ]
    return (
        f"round {result.number} of {n_rounds}: {plural(result.n_images, 'image')} for {plural(result.n_prompts, 'prompt')}, "
        f"{plural(result.n_pairs, 'pair')}; win rates against the base: {', '.join(rates)}"
    )
