"""Settings of `generate`, and what can be asked of a sampler."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from ..core.errors import UsageError

Pairing = Literal["all", "random", "adjacent"]
# Short names of the schedulers people ask for; any scheduler class of diffusers can be named in full.
SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "lms": "LMSDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
}
Dtype = Literal["auto", "float32", "float16", "bfloat16"]


def positive(name: str, value: float, most: float = math.inf, least: float = 0.0, inclusive: bool = False) -> None:
    """Refuse nan, inf, and what lies outside of the range."""
    enough = value >= least if inclusive else value > least
    if not (math.isfinite(value) and enough and value <= most):
        above = f"{'at least' if inclusive else 'above'} {least:g}"
        limit = f" and at most {most:g}" if math.isfinite(most) else ""
        raise UsageError(f"{name} must be {above}{limit}, got {value}")


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{name} knows no {value!r}; there are {', '.join(choices)}")


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    model: str = "shapes"
    """The built-in model, a folder, or a hub id."""
    prompts: str | None = None
    """The built-in prompts, or a file; None is the built-in ones, for the built-in model and what was trained on it alone."""
    images_per_prompt: int = 4
    pairs: Pairing = "all"
    """all: every two pictures of a prompt; adjacent: each with the next; random: each in one pair."""
    num_inference_steps: int | None = None
    """None is what defaults.settled finds: the training images', or what is usual for such models."""
    guidance_scale: float | None = None
    resolution: int | None = None
    """Side of the square picture in pixels; None is the model's own."""
    scheduler: str | None = None
    """A short name or a diffusers class; None is the model's own."""
    negative_prompt: str = ""
    batch_size: int = 32
    seed: int = 0
    limit: int | None = None
    """Use the first so many prompts."""
    dtype: Dtype = "auto"
    """auto is float16 on a GPU and float32 elsewhere."""
    device: str | None = None
    """None is the best there is."""

    def __post_init__(self) -> None:
        one_of("pairs", self.pairs, get_args(Pairing))
        one_of("dtype", self.dtype, get_args(Dtype))
        positive("images-per-prompt", self.images_per_prompt, 10_000)
        if self.num_inference_steps is not None:
            positive("num-inference-steps", self.num_inference_steps, 10_000)
        if self.guidance_scale is not None:
            positive("guidance-scale", self.guidance_scale, 1000, inclusive=True)
        positive("batch-size", self.batch_size, 100_000)
        positive("seed", self.seed, 2**63 - 1, inclusive=True)
        if self.limit is not None:
            positive("limit", self.limit)
        if self.resolution is not None:
            positive("resolution", self.resolution, 16_384)
            if self.resolution % 8:
                raise UsageError(f"resolution must be a multiple of 8, got {self.resolution}")
        if self.scheduler is not None and self.scheduler not in SCHEDULERS and not self.scheduler.endswith("Scheduler"):
            raise UsageError(f"no scheduler is called {self.scheduler!r}; there are {', '.join(SCHEDULERS)}")

    def sampler(self) -> dict:
        """What decides a picture beside model, prompt and seed; part of the generation's id. Of a settled config."""
        assert self.num_inference_steps is not None
        assert self.guidance_scale is not None
        return {
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": float(self.guidance_scale),
            "resolution": self.resolution,
            "scheduler": None if self.scheduler is None else SCHEDULERS.get(self.scheduler, self.scheduler),
            "negative_prompt": self.negative_prompt,
            "dtype": self.dtype,
        }
