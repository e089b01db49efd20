"""What a loop needs, checked before hours are spent: its settings, its earlier rounds, its store."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..core.errors import IntegrityError, UsageError
from ..core.id_columns import id_array
from ..core.ids import canonical, content_id
from ..core.text import plural
from ..eval.judges import choose_scorers
from ..generate.defaults import resolve_defaults
from ..generate.generations import find_images
from ..generate.prompts import read_prompts
from ..generate.stage import Plan
from ..models.families import family_of
from ..models.lineage import read_result
from ..models.resolve import find_model
from ..relabel.judges.request_limits import limit_requests
from ..relabel.scorers.calls import refuse_without_tags
from ..relabel.scorers.registry import is_eval_only, load_scorers
from ..relabel.scorers.sources import MissingWeights
from ..store import PairStore
from ..store.condition import condition
from ..store.query import ask
from ..train.config import TrainConfig
from ..train.preflight import refuse_impossible, refuse_unsuitable
from .config import LoopSettings
from .record import RoundResult
from .settings_file import identity, settings_of_images


class NothingToTrainOnError(UsageError):
    """None of a round's pairs is decided clearly enough."""


@contextmanager
def _cure_in(section: str) -> Iterator[None]:
    """Where a stage's error names --checkpoint, which a loop does not have, name the setting of a section."""
    try:
        yield
    except MissingWeights as error:
        setting = rf"""`--set '{section}.checkpoints={{"\1"="shapes"}}'`"""
        raise MissingWeights(re.sub(r"`--checkpoint ([\w.]+)=shapes`", setting, str(error))) from error


def refuse_impossible_loop(
    settings: LoopSettings, rounds: Sequence[RoundResult], say: Callable[[str], None] = print
) -> str:
    """Refuse what a later stage would refuse hours later, and what would make the rounds incomparable. Loads no weights.

    Args:
        rounds: those that are finished.

    Returns:
        A hash of everything that decides the images of the first round.

    Raises:
        UsageError, PrefloopError: if a model, prompts, scorers or other settings cannot be used, or have changed.
    """
    loop = settings.loop
    model = find_model(loop.model)
    if rounds:
        refuse_lost_model(loop.round_dir(len(rounds)))
        find_model(str(loop.round_dir(len(rounds))))
    training = settings.train_config(1, "labeler")
    refuse_impossible(training)
    refuse_unsuitable(training, family_of(model))
    relabelling = settings.relabel_config()
    evaluation, _ = choose_scorers(settings.eval_config(1, loop.model), model, fetch=True)
    with _cure_in("relabel"):
        scorers = load_scorers(relabelling.scorers, relabelling.checkpoints, relabelling.device, relabelling.dtype)
    for scorer in scorers:
        if is_eval_only(scorer):
            raise UsageError(
                f"{scorer.name} is reserved for evaluation, so that one judge stays independent of the training labels; "
                "name another scorer in [relabel], and this one in [eval]"
            )
    with _cure_in("eval"):
        judges = load_scorers(evaluation.scorers, evaluation.checkpoints, evaluation.device)
    limit_requests(scorers, relabelling)
    limit_requests(judges, evaluation)
    generation = resolve_defaults(settings.generate_config(1), model, None)
    evaluated = resolve_defaults(evaluation.generate_config(loop.model), model, None, "shapes-heldout")
    generated = read_prompts(generation.prompts or "", generation.limit)
    to_evaluate = read_prompts(evaluated.prompts or "", evaluated.limit)
    refuse_without_tags(scorers, (prompt.tags for prompt in generated), generation.prompts or "")
    refuse_without_tags(judges, (prompt.tags for prompt in to_evaluate), evaluated.prompts or "")
    prompts, held_out = [prompt.text for prompt in generated], {prompt.text for prompt in to_evaluate}
    if rounds and held_out != {judged.prompt for judged in rounds[0].prompts}:
        raise UsageError(
            f"the evaluation prompts, {evaluated.prompts}, have changed since round 1, and rounds are compared on the same; "
            "restore them, or begin another loop with another --output-dir"
        )
    if not rounds and (n_both := len(held_out.intersection(prompts))):
        say(
            f"{plural(n_both, 'prompt')} of the {len(held_out)} to evaluate on may be trained on too: win rates on them are not "
            "held out; name other prompts in [eval]"
        )
    decides_images = {"settings": settings_of_images(settings), "model": model.model_id.hex, "prompts": prompts}
    return content_id(canonical(decides_images).encode()).hex[:16]


def refuse_lost_model(folder: Path) -> dict[str, Any]:
    """The prefloop.json of a finished round's model.

    Raises:
        IntegrityError: if it is gone.
    """
    record = read_result(folder) if folder.is_dir() else None
    if record is None:
        raise IntegrityError(
            f"{folder} has no finished model, although its round is finished; restore it, or move {folder}.json away, and the "
            "same command trains the round again"
        )
    return record


def open_store(settings: LoopSettings, rounds: Sequence[RoundResult]) -> PairStore:
    """The store of a loop, which is created before its first round.

    Raises:
        UsageError: if it does not hold a finished round.
    """
    path, kept = settings.loop.store_path, set[str]()
    store = PairStore(path)
    if not rounds or store.exists():
        store = PairStore.create(path)
        query = "select distinct config->>'$.round' from runs where kind = 'round' and config->>'$.loop' = ?"
        kept = {number for (number,) in store.rows(query, [identity(settings)])}
    for result in rounds:
        if str(result.number) not in kept:
            raise UsageError(
                f"the store {path} does not hold round {result.number} of the loop {settings.loop.output_dir}; name the store it began "
                "with, --store"
            )
    return store


def refuse_other_loop(settings: LoopSettings, store: PairStore, images: str) -> None:
    """
    Args:
        images: from `refuse_impossible_loop`.

    Raises:
        UsageError: if the store holds rounds of another loop, or if the images of this one would be made from something else
            than they were. A first round that was not finished may belong to other settings, if its images are the same.
    """
    query = """
        select config->>'$.loop', config->>'$.images', status = 'done' or config->>'$.round' <> '1'
        from runs where kind = 'round'"""
    for loop, made_from, is_kept in store.rows(query):
        if loop == identity(settings) and made_from != images:
            raise UsageError(
                f"the model {settings.loop.model} or the prompts of [generate] have changed since this loop began; restore them, "
                "or begin another loop with another --output-dir and --store"
            )
        if loop != identity(settings) and (is_kept or made_from != images):
            raise UsageError(
                f"the store {store.path} holds the rounds of another loop, and a pair knows only the number of its round; "
                "name another folder with --store"
            )


def refuse_pairs_without_round(planned: Plan, store: PairStore) -> None:
    """
    Raises:
        UsageError: if `prefloop generate` has already made pairs of a plan: they have no round, and would not be trained on.
    """
    query = """
        select count(*) from pairs p
        semi join planned a on a.image_id = p.image_a
        semi join planned b on b.image_id = p.image_b
        anti join run_rounds r on r.run_id = p.run_id
        where p.source <> 'eval'"""
    found, images = find_images(planned.generations.keys, store)
    ids = pa.ExtensionArray.from_storage(pa.uuid(), id_array(images[found]))
    with store.session() as connection:
        connection.register("planned", pa.table({"image_id": ids}))
        ((n,),) = connection.execute(query).fetchall()
    if n:
        raise UsageError(
            f"{plural(n, 'pair')} of round 1 {'is' if n == 1 else 'are'} in {store.path} from another run, and belong"
            f"{'s' if n == 1 else ''} to no round; name another folder with --store, or another --seed"
        )


def refuse_nothing_to_train_on(number: int, store: PairStore, config: TrainConfig) -> None:
    """
    Raises:
        NothingToTrainOnError: if no pair is left after ties and the settings of the loop.
    """
    query = f"""
        with decided as (
            select * from (select * from training_preferences where labeler = $labeler) preferences
            where split = 'train' and source <> 'eval'
        )
        select
            (select count(*) from decided preferences where {condition(config.where or "true")}) as n_selected,
            count(*) filter (where round = $round) as n_decided,
            max(margin) filter (where round = $round) as largest
        from decided"""
    (row,) = ask(store, query, parameters={"labeler": config.labelers[0], "round": number}).to_pylist()
    if row["n_selected"]:
        return
    if not row["n_decided"]:
        found, cure = (
            "all are ties or have no scores",
            "let [generate] make more images, or name other scorers in [relabel]",
        )
    else:
        largest = "" if row["largest"] is None else f", with margins up to {row['largest']:.4g}"
        found = f"{plural(row['n_decided'], 'pair')} of it {'is' if row['n_decided'] == 1 else 'are'} decided{largest}"
        cure = "lower min_margin of [loop], or relax where of [train]"
    raise NothingToTrainOnError(
        f"round {number} has no pair to train on: {found}; {cure}. Images and scores are kept"
        if number == 1
        else f"round {number} has no pair to train on: {found}"
    )
