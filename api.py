"""prefloop from Python: a store, the stages as its methods, and SQL that gives Arrow tables."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from .core.errors import PrefloopError, UsageError
from .core.options import config_fields
from .store.pairstore import PairStore

if TYPE_CHECKING:
    import pyarrow as pa
    from _typeshed import DataclassInstance
    from numpy.typing import ArrayLike
    from PIL.Image import Image

    from .eval.compare import Comparison
    from .eval.config import EvalConfig
    from .generate.config import GenerateConfig
    from .relabel.config import RelabelConfig
    from .relabel.rules import Floats, PairScores, Rule
    from .relabel.scorers.registry import Scorer
    from .train.config import TrainConfig

Config = TypeVar("Config", bound="DataclassInstance")


def open_store(path: str | os.PathLike[str], *, create: bool = False) -> "Store":
    """Open the store in a folder.

    Example:
        store = prefloop.open_store("prefloop-store", create=True)

    Args:
        create: create the store if the folder has none.

    Raises:
        PrefloopError: if the folder has no store and `create` is false.
        IntegrityError: if the store has another schema version, or is damaged.
    """
    if create:
        return Store(PairStore.create(Path(path)))
    if not PairStore(Path(path)).exists():
        name = os.fspath(path)
        raise PrefloopError(f"no store at {name}; prefloop.open_store({name!r}, create=True) creates one")
    return Store(PairStore.open(Path(path)))


class Store:
    """A store: prompts, images, pairs, scores and labels in one folder. `prefloop.open_store` opens one.

    The stages take the settings of their commands, as a config, as keywords, or both; the keywords count. They print their
    progress on stderr, and return the summary that the command prints with --json. Calling one again does only what is missing.
    """

    def __init__(self, pairs: PairStore) -> None:
        self._pairs = pairs

    @property
    def path(self) -> Path:
        """Folder of the store.

        Example:
            store.path / "images"
        """
        return self._pairs.path

    def __repr__(self) -> str:
        return f"prefloop.open_store({str(self.path)!r})"

    def sql(self, query: str, parameters: Mapping[str, Any] | None = None, *, timeout: float = 60.0) -> "pa.Table":
        """The result of one query that only reads, as an Arrow table. Ids are strings, times are UTC.

        Example:
            store.sql("select * from preferences where margin > $least", {"least": 0.5}).to_pandas()

        Args:
            parameters: values of the query's $names; they are bound, never inserted into its text.
            timeout: seconds after which the query is interrupted.

        Raises:
            UsageError: if the SQL is invalid, or does more than read the store.
            PrefloopError: if it takes longer than the timeout.
        """
        from .store.query import ask

        self._pairs.ingest()
        return ask(self._pairs, query, timeout, parameters)

    def saved_query(self, name: str, **parameters: Any) -> "pa.Table":
        """The result of a saved query; `prefloop store query --list` lists their names and parameters.

        Example:
            store.saved_query("closest-pairs", labeler="pickscore", n=5)

        Raises:
            UsageError: if no saved query has that name, or it has no such parameter.
        """
        from .store.queries.saved import saved_query

        saved = saved_query(name)
        return self.sql(saved.sql, saved.values(parameters))

    def image(self, image_id: str | UUID) -> "Image":
        """An image of the store, in RGB.

        Example:
            store.image(store.sql("select chosen from preferences limit 1")["chosen"][0].as_py())

        Raises:
            UsageError: if the store has no such image.
            ImageError: if its file is missing or damaged.
        """
        from .store.images import load_image

        try:
            identity = image_id if isinstance(image_id, UUID) else UUID(image_id)
        except ValueError:
            raise UsageError(f"{image_id!r} is not an image's id") from None
        rows = self._pairs.rows("select format from images where image_id = ?", [identity])
        if not rows:
            raise UsageError(f"the store has no image {identity}")
        return load_image(self._pairs.image_path(identity, rows[0][0]), identity)

    def agreement(self, *, evaluations: bool = False, by_round: bool = False) -> "pa.Table":
        """How often each two labelers agree, with Cohen's kappa and intervals over prompts, as `prefloop store agreement --json`.

        Example:
            store.agreement(by_round=True).to_pandas()

        Args:
            evaluations: also the labelers of evaluations, eval:…, after the others.
            by_round: a row for each round of a loop.
        """
        from .store.agreement import agreement

        self._pairs.ingest()
        return agreement(self._pairs, evaluations=evaluations, by_round=by_round)

    def generate(self, config: "GenerateConfig | None" = None, **settings: Any) -> dict[str, Any]:
        """Generate candidate images for prompts, and pair them, as `prefloop generate`.

        Example:
            store.generate(prompts="shapes", images_per_prompt=2, limit=100)

        Args:
            settings: fields of GenerateConfig.

        Returns:
            Counts: prompts, images, generated, pairs (all of these settings), new_pairs, truncated.

        Raises:
            UsageError: if a setting is wrong, or the model or the prompts cannot be found.
        """
        from .generate.config import GenerateConfig
        from .generate.stage import generate

        return generate(_settings(GenerateConfig, config, settings), self._pairs)

    def relabel(
        self,
        config: "RelabelConfig | None" = None,
        *,
        scorers: "str | Scorer | Sequence[str | Scorer] | None" = None,
        rule: "str | Rule | Callable[[PairScores], Floats] | None" = None,
        **settings: Any,
    ) -> dict[str, Any]:
        """Score images and label pairs, as `prefloop relabel`.

        Example:
            store.relabel(scorers="pickscore", checkpoints="shapes")

        Args:
            scorers: names, or objects with name, revision, needs_prompt and score; see `prefloop.Scorer`.
            rule: a name, or a function from `prefloop.PairScores` to (P,) margins: positive where a wins, negative where b does,
                0 for a tie, nan to leave a pair without a label.
            settings: other fields of RelabelConfig.

        Returns:
            labeler, pairs, scored (images by scorer), labels (pairs by choice), new_labels, excluded, temperatures …

        Raises:
            UsageError: if a setting is wrong, there are no pairs, or the labeler exists and decides in another way.
            BadDataError: if more than `max_unreadable` of the images or scores cannot be used.
        """
        from .relabel.config import RelabelConfig
        from .relabel.rules import own_rule
        from .relabel.stage import relabel

        if isinstance(rule, str):
            settings["rule"] = rule
        known = own_rule(rule) if rule is not None and not isinstance(rule, str) else nullcontext()
        with known as name, _scorers(scorers, settings):
            if name is not None:
                settings["rule"] = name
            return relabel(_settings(RelabelConfig, config, settings), self._pairs)

    def train(
        self, config: "TrainConfig | None" = None, *, resume: bool = False, overwrite: bool = False, **settings: Any
    ) -> dict[str, Any]:
        """Tune a model on the labels of the store, as `prefloop train`.

        Example:
            store.train(output_dir="tuned", labelers="pickscore", where="margin > 0.1", max_train_steps=100)

        Args:
            resume: continue a finished run up to a larger max_train_steps.
            overwrite: start over in a folder that holds a run.
            settings: fields of TrainConfig.

        Returns:
            n_pairs, steps, loss, implicit_accuracy, validation, output_dir, diagnoses …

        Raises:
            UsageError: if a setting is wrong, or the folder holds a finished or another run.
            NumericalError: if a loss or gradient is not finite.
        """
        from .train.config import TrainConfig

        resolved = _settings(TrainConfig, config, settings)
        from .train.stage import train

        return train(resolved, self._pairs, resume=resume, overwrite=overwrite)

    def evaluate(
        self,
        config: "EvalConfig | None" = None,
        *,
        scorers: "str | Scorer | Sequence[str | Scorer] | None" = None,
        **settings: Any,
    ) -> dict[str, Any]:
        """Measure how often tuned models win, and write a report, as `prefloop eval`.

        Example:
            store.evaluate(models="tuned", scorers=["hps", "oracle"], checkpoints="shapes")

        Args:
            scorers: names, or objects with name, revision, needs_prompt and score; see `prefloop.Scorer`.
            settings: other fields of EvalConfig.

        Returns:
            baseline, n_prompts, n_pairs, scorers (judge → win_rate, win_rate_low, win_rate_high …), models, ranks, report …

        Raises:
            UsageError: if a setting is wrong, or a model or the prompts cannot be found.
        """
        from .eval.config import EvalConfig
        from .eval.stage import evaluate

        with _scorers(scorers, settings):
            return evaluate(_settings(EvalConfig, config, settings), self._pairs)


def compare(
    baseline: "ArrayLike", tuned: "ArrayLike", prompts: Sequence[Any], *, n_resamples: int = 10_000, seed: int = 0
) -> "Comparison":
    """How often one model's images score higher than another's, with 95 % intervals over prompts.

    Example:
        prefloop.compare(baseline=[0.1, 0.2], tuned=[0.3, 0.1], prompts=["a fox", "an owl"]).win_rate

    Args:
        baseline: scores of the baseline's images, (N,).
        tuned: scores of the tuned model's images for the same prompts, (N,).
        prompts: the prompt of each two images, (N,); every prompt weighs the same.

    Raises:
        ValueError: if the lengths differ, or no pair has two finite scores.
    """
    import numpy as np

    from .eval.compare import compare as of_scores

    base_scores, tuned_scores = np.asarray(baseline, np.float64), np.asarray(tuned, np.float64)
    shapes = {base_scores.shape, tuned_scores.shape, (len(prompts),)}
    if len(shapes) > 1:
        raise ValueError(f"baseline, tuned and prompts must be of one length, got {sorted(shapes)}")
    _, numbers = np.unique(np.asarray(prompts), return_inverse=True)
    return of_scores(base_scores, tuned_scores, numbers, n_resamples, seed)


def _settings(kind: type[Config], config: Config | None, settings: Mapping[str, Any]) -> Config:
    """The config with these settings. A single text stands for a tuple of one, or for the checkpoint of all scorers.

    Raises:
        UsageError: if a setting is unknown, or one is missing.
    """
    repeated = {field.name: field.repeated for field in config_fields(kind)}
    if unknown := settings.keys() - repeated.keys():
        known = ", ".join(sorted(repeated))
        raise UsageError(f"{kind.__name__} has no {', '.join(sorted(unknown))}; it has {known}")
    values = {name: _value(value, repeated[name], name == "checkpoints") for name, value in settings.items()}
    if config is not None:
        return replace(config, **values)
    required = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in required if name not in values]:
        raise UsageError(f"{kind.__name__} needs {' and '.join(missing)}")
    return kind(**values)


def _value(value: Any, repeated: bool, by_name: bool) -> Any:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        return {"": value} if by_name else (value,) if repeated else value
    if repeated and isinstance(value, list | tuple):
        return tuple(os.fspath(item) if isinstance(item, os.PathLike) else item for item in value)
    return value


def _scorers(scorers: "str | Scorer | Sequence[str | Scorer] | None", settings: dict[str, Any]):
    """The block in which the objects among the scorers are known by name; their names go into the settings."""
    from .relabel.scorers.registry import scorer_objects

    if scorers is None:
        return nullcontext()
    given = list(scorers) if isinstance(scorers, list | tuple) else [scorers]
    objects: list[Any] = [scorer for scorer in given if not isinstance(scorer, str)]
    block = scorer_objects(objects)
    settings["scorers"] = tuple(scorer if isinstance(scorer, str) else getattr(scorer, "name", "") for scorer in given)
    return block
