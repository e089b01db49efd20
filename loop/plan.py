"""`prefloop loop --dry-run`: what all rounds will generate, score, train on and cost, from configs alone."""

import sys
from dataclasses import asdict, dataclass
from math import comb

import torch

from ..core.device import best_device
from ..core.json import plain
from ..core.text import duration, percent, plural, size
from ..eval.judges import choose_scorers
from ..generate.config import GenerateConfig
from ..generate.defaults import resolve_defaults
from ..generate.estimate import flops_per_image, png_bytes, precision_of
from ..generate.prompts import read_prompts
from ..models.cost.components import with_text_defaults
from ..models.cost.speed import measured_speed
from ..models.families import family_of
from ..models.model import Model
from ..models.resolve import find_model
from ..train.cost.cost_model import CostModel, DatasetSize, cache_bytes
from ..train.cost.dry_run import cost_settings_on
from .checks import refuse_impossible_loop
from .config import LoopSettings


@dataclass(frozen=True, kw_only=True)
class RoundPlan:
    n_prompts: int
    n_images: int
    n_eval_images: int
    """Of the round's model; the base's are generated once, in the first round."""
    n_scores: int
    """By all scorers of relabel and eval together."""
    n_pairs: int
    """To train on, at most: those that are ties, too close or held out for validation are not known before. Replayed ones are
    not counted."""
    n_steps: int
    flops: dict[str, int]
    """By stage, without scorers."""
    seconds: dict[str, float]
    """By stage, without scorers, loading and validation."""
    bytes_on_disk: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class LoopPlan:
    """`dataclasses.asdict` turns it into JSON."""

    model: str
    family: str
    device: str
    rounds: list[RoundPlan]
    n_base_eval_images: int
    memory_bytes: int
    """Peak of training, per device."""

    @property
    def seconds(self) -> float:
        return sum(sum(each.seconds.values()) for each in self.rounds)

    @property
    def flops(self) -> int:
        return sum(sum(each.flops.values()) for each in self.rounds)

    @property
    def bytes_on_disk(self) -> int:
        return sum(sum(each.bytes_on_disk.values()) for each in self.rounds)


def plan_loop(settings: LoopSettings) -> LoopPlan:
    """Plan all rounds. Loads no weights and writes nothing.

    Raises:
        UsageError, PrefloopError: if the loop would be refused too: a model, prompts, scorers or a setting.
    """
    loop, model = settings.loop, find_model(settings.loop.model)
    training = settings.train_config(1, "labeler")
    refuse_impossible_loop(settings, (), lambda line: print(line, file=sys.stderr))
    family = with_text_defaults(family_of(model))
    generation, evaluation = _resolved(settings, model)
    n_prompts = len(read_prompts(generation.prompts or "", generation.limit))
    n_prompts = min(n_prompts, loop.prompts_per_round or n_prompts)
    n_images = n_prompts * generation.images_per_prompt
    n_eval = len(read_prompts(evaluation.prompts or "", evaluation.limit)) * evaluation.images_per_prompt
    n_pairs = n_prompts * _pairs_per_prompt(generation, loop.pairs_per_prompt)
    use_cuda = not training.on_cpu and torch.cuda.is_available()
    device = torch.device("cuda" if use_cuda else "cpu")
    speed = measured_speed(device)
    data = DatasetSize(n_pairs=n_pairs, n_images=n_images, n_prompts=n_prompts)
    # a reference other than the round before takes memory from the second round on
    last = settings.train_config(loop.rounds, "labeler")
    costs, trained = CostModel(family, data, speed), cost_settings_on(device, last, family)
    per_image = flops_per_image(family, generation)
    precision = precision_of(generation.dtype, family, speed)
    step = costs.training_pass(trained)
    n_passes = training.max_train_steps * training.gradient_accumulation_steps
    train_flops = n_passes * ((2 if trained.has_reference else 1) * step.forward_flops + step.backward_flops)
    result_bytes = 4 * costs.component(trained).n_trained
    side = generation.resolution or family.resolution
    rounds = []
    for number in range(1, loop.rounds + 1):
        n_eval_images = n_eval * (2 if number == 1 else 1)
        flops = {"generate": n_images * per_image, "train": train_flops, "eval": n_eval_images * per_image}
        rounds.append(
            RoundPlan(
                n_prompts=n_prompts,
                n_images=n_images,
                n_eval_images=n_eval,
                n_scores=n_images * len(settings.relabel_config().scorers)
                + n_eval_images
                * len(choose_scorers(settings.eval_config(number, loop.model), model, fetch=False)[0].scorer_names),
                n_pairs=n_pairs,
                n_steps=training.max_train_steps,
                flops=flops,
                seconds={
                    "generate": speed.seconds(flops["generate"], precision),
                    "train": sum(costs.seconds(trained).values()),
                    "eval": speed.seconds(flops["eval"], precision),
                },
                bytes_on_disk={
                    "images": png_bytes(n_images + n_eval_images, side),
                    "cache": sum(cache_bytes(family, data, trained).values()),
                    # the result, and the checkpoints with both moments of Adam
                    "weights": result_bytes * (1 + 3 * training.checkpoints_total_limit),
                },
            )
        )
    return LoopPlan(
        model=model.name,
        family=family.name,
        device=str(best_device(generation.device)),
        rounds=rounds,
        n_base_eval_images=n_eval,
        memory_bytes=max(sum(parts.values()) for parts in costs.memory(trained).values()),
    )


def _resolved(settings: LoopSettings, model: Model) -> tuple[GenerateConfig, GenerateConfig]:
    """How the first round generates images to label, and images to evaluate."""
    generation = resolve_defaults(settings.generate_config(1), model, None)
    evaluation = settings.eval_config(1, settings.loop.model).generate_config(settings.loop.model)
    return generation, resolve_defaults(evaluation, model, None, built_in_prompts="shapes-heldout")


def _pairs_per_prompt(generation: GenerateConfig, most: int | None) -> int:
    k = generation.images_per_prompt
    n = {"all": comb(k, 2), "adjacent": k - 1, "random": k // 2}[generation.pairing]
    return n if most is None else min(n, most)


def plan_text(plan: LoopPlan) -> str:
    """The plan as lines for a terminal."""
    first = plan.rounds[0]
    each = "each round" if len(plan.rounds) > 1 else "the round"
    lines = [
        f"{plural(len(plan.rounds), 'round')} of {plan.model} ({plan.family}) on {plan.device}",
        f"{each:<14}{plural(first.n_images, 'image')} for {plural(first.n_prompts, 'prompt')}, up to "
        f"{plural(first.n_pairs, 'pair')} to train on, {plural(first.n_steps, 'step')}, "
        f"{plural(first.n_eval_images, 'image')} to evaluate",
        f"first round   {plural(plan.n_base_eval_images, 'image')} of the base more, which all rounds are compared with",
        f"in total      {sum(each.n_images + each.n_eval_images for each in plan.rounds) + plan.n_base_eval_images:,} images, "
        f"{sum(each.n_scores for each in plan.rounds):,} scores, {sum(each.n_steps for each in plan.rounds):,} steps",
        f"compute       {plan.flops / 1e12:.3g} TFLOP: {_shares(plan)}",
        f"time          {duration(plan.seconds)}: "
        + ", ".join(f"{stage} {duration(sum(each.seconds[stage] for each in plan.rounds))}" for stage in first.seconds),
        f"memory        {size(plan.memory_bytes)} at most, per device, while training",
        f"disk          {size(plan.bytes_on_disk)}: "
        + ", ".join(
            f"{what} {size(sum(each.bytes_on_disk[what] for each in plan.rounds))}" for what in first.bytes_on_disk
        ),
        "These are estimates: FLOPs are counted on the model's config, and time assumes a measured rate of matrix products. "
        "Scorers, loading, validation and checkpoints are not in them. The loop may stop before its last round.",
    ]
    return "\n".join(lines)


def _shares(plan: LoopPlan) -> str:
    total = {stage: sum(each.flops[stage] for each in plan.rounds) for stage in plan.rounds[0].flops}
    return ", ".join(f"{stage} {percent(n / max(1, plan.flops), 0)}" for stage, n in total.items())


def as_json(plan: LoopPlan) -> dict:
    return plain(asdict(plan) | {"seconds": plan.seconds, "flops": plan.flops, "bytes_on_disk": plan.bytes_on_disk})
