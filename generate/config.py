"""Settings of `generate`."""

from dataclasses import dataclass
from typing import Literal, get_args

from ..core.errors import UsageError
from ..core.executor import check_workers
from ..core.validate import positive, unknown

Pairing = Literal["all", "random", "adjacent"]
# Short names of common noise schedulers; any scheduler class of diffusers can be named in full.
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


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    model: str = "shapes"
    """shapes or shapes-flow (built in), a folder, or a hub id."""
    prompts: str | None = None
    """Prompt file (.txt, .jsonl, .json, .csv, .tsv or .parquet), a set of `prefloop prompts ls`, SET=PATH for a copy of one,
    shapes or shapes-heldout. Defaults to shapes for the built-in models and what was trained on them; any other model
    needs its own."""
    images_per_prompt: int = 4
    """Candidate images per prompt."""
    pairing: Pairing = "all"
    """all: every two images of a prompt; adjacent: each with the next; random: each image in at most one pair."""
    limit: int | None = None
    """Use only the first N prompts."""
    seed: int = 0
    """Seed of the noise."""
    num_inference_steps: int | None = None
    """Denoising steps; by default as the training images were generated, or the usual number for this kind of model."""
    guidance_scale: float | None = None
    """Classifier-free guidance, where 1 disables it; by default as for the number of steps."""
    resolution: int | None = None
    """Side in pixels; the model's own if not given."""
    scheduler: str | None = None
    """Noise scheduler: a short name (ddim, dpm++, euler, …) or a diffusers class; the model's own if not given."""
    negative_prompt: str = ""
    """What the images should not show."""
    batch_size: int = 32
    """Images generated at once."""
    auto_batch_size: bool = False
    """On a GPU, generate as many images at once as its free memory is estimated to hold, at most 256; a CPU uses --batch-size."""
    dtype: Dtype = "auto"
    """auto, float32, float16 or bfloat16; on a CPU auto is float32, on a GPU what the model was made for:
    float16 for U-Nets, bfloat16 for transformers."""
    vae_dtype: Dtype = "auto"
    """What the VAE decodes in: auto, float32, float16 or bfloat16. auto is as --dtype, but float32 for a VAE that overflows in
    float16, such as SDXL's."""
    device: str | None = None
    """cuda, mps or cpu; the best available if not given."""
    workers: int = 1
    """Processes that generate, each with the model: one for each GPU, of this machine or of the Ray cluster at RAY_ADDRESS."""

    def __post_init__(self) -> None:
        check_workers(self.workers)
        if self.pairing not in get_args(Pairing):
            raise unknown("pairing", self.pairing, get_args(Pairing))
        if self.dtype not in get_args(Dtype):
            raise unknown("dtype", self.dtype, get_args(Dtype))
        if self.vae_dtype not in get_args(Dtype):
            raise unknown("vae-dtype", self.vae_dtype, get_args(Dtype))
        positive("images-per-prompt", self.images_per_prompt, 10_000)
        if self.num_inference_steps is not None:
            positive("num-inference-steps", self.num_inference_steps, 10_000)
        if self.guidance_scale is not None:
            positive("guidance-scale", self.guidance_scale, 1000, allow_zero=True)
        positive("batch-size", self.batch_size, 100_000)
        positive("seed", self.seed, 2**63 - 1, allow_zero=True)
        if self.limit is not None:
            positive("limit", self.limit)
        if self.resolution is not None:
            positive("resolution", self.resolution, 16_384)
            if self.resolution % 8:
                raise UsageError(f"resolution must be a multiple of 8, got {self.resolution}")
        if self.scheduler is not None and self.scheduler not in SCHEDULERS and not self.scheduler.endswith("Scheduler"):
            raise unknown("scheduler", self.scheduler, SCHEDULERS)

    def sampling(self) -> dict:
        """The sampling settings: what decides an image besides model, prompt and seed, and so part of the generation's id.

        Steps and guidance scale must have been resolved.
        """
        assert self.num_inference_steps is not None
        assert self.guidance_scale is not None
        sampling = {
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": float(self.guidance_scale),
            "resolution": self.resolution,
            "scheduler": None if self.scheduler is None else SCHEDULERS.get(self.scheduler, self.scheduler),
            "negative_prompt": self.negative_prompt,
            "dtype": self.dtype,
        }
        # left out by default: earlier generations, which have none, keep their ids
        return sampling if self.vae_dtype == "auto" else sampling | {"vae_dtype": self.vae_dtype}
