"""Write the model card of a finished result again."""

from pathlib import Path

from ...core.errors import IntegrityError, UsageError
from ...core.hashing import RESULT_FILE
from ...models.checkpoints import best_checkpoint
from ...models.resolve import find_model
from ...store.pairstore import PairStore
from ..run_folder.readme import write_readme
from .card import evaluations_of, model_card


def write_card(folder: Path, store: PairStore) -> int:
    """Rewrite the README.md of a result with later evaluations of it, and return their number.

    Raises:
        UsageError: if the folder has no finished result, or its README.md was edited.
        IntegrityError: if the result has changed since train wrote it.
    """
    path = folder / RESULT_FILE
    if not path.is_file():
        raise UsageError(f"{folder} has no finished result: {RESULT_FILE} is missing; name a folder that train wrote")
    model = find_model(str(folder))
    evaluations = evaluations_of(store, model.model_id)
    try:
        card = model_card(model.trained_with or {}, evaluations, model.trained_on, best_checkpoint(model))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IntegrityError(
            f"a card cannot be written from {path}: {type(error).__name__} {error}; train again"
        ) from error
    write_readme(folder, card)
    return len(evaluations)
