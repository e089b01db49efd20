"""The options of `train` by which a run has the settings of a config, whatever the recipe for its model has."""

from prefloop.train import TrainConfig
from prefloop.train.defaults import DECIDED


def decided(config: TrainConfig) -> list[str]:
    words = []
    for name, value in config.resolved().items():
        option = name.replace("_", "-")
        if name in DECIDED:
            words += [f"--{'' if value else 'no-'}{option}"] if isinstance(value, bool) else [f"--{option}", str(value)]
    return words
