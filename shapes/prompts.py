"""The built-in world's prompt files: one for training pairs, one held out.

    python -m prefloop.shapes.prompts

Four of the 24 combinations of color and form occur only in held-out prompts.
"""

import json
import random

from . import prompt_file
from .scene import RELATIONS, Scene, Shape, all_scenes

UNSEEN = {Shape("green", "star"), Shape("purple", "circle"), Shape("orange", "square"), Shape("blue", "triangle")}
N_TRAIN = 900
N_HELDOUT_SEEN = 200
N_HELDOUT_UNSEEN = 200


def prompt_sets() -> dict[str, list[Scene]]:
    """Training and held-out scenes; no training prompt means the same as a held-out one, even in other words."""
    rng = random.Random(20261122)
    scenes = all_scenes()
    rng.shuffle(scenes)
    seen = [scene for scene in scenes if not UNSEEN & set(scene.shapes)]
    unseen = [scene for scene in scenes if UNSEEN & set(scene.shapes)]
    heldout = [scene for scene in seen if len(scene.shapes) == 2][:N_HELDOUT_SEEN]
    heldout_meanings = {_meaning(scene) for scene in heldout}
    train = [scene for scene in seen if _meaning(scene) not in heldout_meanings][:N_TRAIN]
    return {"train": train, "heldout": heldout + unseen[:N_HELDOUT_UNSEEN]}


def _meaning(scene: Scene) -> tuple:
    return (frozenset(scene.shapes), "and") if scene.relation == "and" else (scene.shapes, scene.relation)


def tags(scene: Scene) -> dict[str, str]:
    return {
        "relation": scene.relation or "alone",
        "combination": "unseen" if UNSEEN & set(scene.shapes) else "seen",
    }


def main() -> None:
    for which, scenes in prompt_sets().items():
        path = prompt_file(which)
        path.parent.mkdir(exist_ok=True)
        lines = [json.dumps({"prompt": str(scene), **tags(scene)}) for scene in scenes]
        path.write_text("\n".join(lines) + "\n")
        counts = {relation: sum(scene.relation == relation for scene in scenes) for relation in (None, *RELATIONS)}
        print(f"{path.name}: {len(scenes)} prompts, {counts}")


if __name__ == "__main__":
    main()
