"""The model of the best round, in a folder of its own with a card that has its evaluations."""

import shutil
import sys
from pathlib import Path

from ..core.errors import IntegrityError, cannot_write
from ..core.hashing import RESULT_FILE, digests
from ..core.ids import canonical
from ..models.lineage import read_result, verify_files
from ..models.resolve import find_model
from ..store import PairStore
from ..train.export.card import evaluations_of, model_card
from ..train.run_folder.ownership import read_result_files
from ..train.run_folder.publish import publish
from ..train.run_folder.readme import README, is_our_readme, write_readme
from .checks import refuse_lost_model


def keep_result(folder: Path, best: Path, store: PairStore) -> None:
    """Put the best round's model into the loop's result. Other files there stay.

    Raises:
        IntegrityError: if the model of that round is gone or has changed.
        UsageError: if somebody else's file has the name of one of the result's.
    """
    record = refuse_lost_model(best)
    model = find_model(str(best))
    if not _holds(folder, record):
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise cannot_write(folder, error) from error
        with publish(folder) as new:
            for name in {*record.get("files", {}), *read_result_files(best), RESULT_FILE}:
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(best / name, new / name)
    if (folder / README).exists() and not is_our_readme(folder / README):
        print(f"{folder / README} was written or edited by somebody else; it is not updated", file=sys.stderr)
        return
    # an interrupted round may have been evaluated twice, with the same result
    evaluations = {canonical(evaluation): evaluation for evaluation in evaluations_of(store, model.model_id)}
    write_readme(folder, model_card(record, list(evaluations.values()), model.trained_on))


def _holds(folder: Path, record: dict) -> bool:
    """Whether the folder has a result with this prefloop.json, unchanged."""
    try:
        if not folder.is_dir() or read_result(folder) != record:
            return False
        verify_files(folder, record.get("files", {}), digests(folder))
    except IntegrityError:
        return False
    return True
