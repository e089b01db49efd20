"""Settings of `eval`."""

import re
from dataclasses import dataclass, field

from ..core.errors import UsageError
from ..generate.config import Dtype, GenerateConfig, positive
from ..relabel.judges.request_limits import RequestLimits

HUMAN = "human"
"""The judge whose choices are people's."""
RENAMED = {"report": "output_dir", "against": "baseline", "weights": "checkpoints"}
"""Earlier names of settings, which options, files and stores may still use."""
_NAME = re.compile(r"\w[\w.-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class EvalConfig(RequestLimits):
    models: tuple[str, ...] = ()
    """Tuned model: a folder or a hub id; repeat for several, which are compared with one another too."""
    sweep: str | None = None
    """Folder of a finished training run: evaluate all of its checkpoints, and keep the best one in its checkpoint-best."""
    baseline: str | None = None
    """Model to compare with; by default the one that each was trained on."""
    prompts: str | None = None
    """Prompt file as for generate, a published set such as parti, shapes or shapes-heldout. Defaults to shapes-heldout for the built-in models and what was
    trained on them; any other model needs its own."""
    scorers: tuple[str, ...] = ()
    """Scorer's name, vlm:TEMPLATE, module:Class, the URL of one, or human; repeat for several. By default those of pickscore, hps, clip
    and aesthetics whose weights are here or can be downloaded; for the built-in models and what was trained on them, the oracle and
    the built-in world's versions of these."""
    checkpoints: dict[str, str] = field(default_factory=dict)
    """Scorer's checkpoint: PATH, SCORER=PATH, a hub id, or shapes for the built-in world's; by default the official one."""
    images_per_prompt: int = 1
    """Images of each model per prompt; all models start from the same noise."""
    human: bool = False
    """Prepare the pairs for people: labels that they give with `prefloop label --queue eval:NAME` count as those of a judge."""
    name: str | None = None
    """Name of the evaluation, for `prefloop label` and --again; by default the first digits of its id."""
    limit: int | None = None
    """Use only the first N prompts."""
    seed: int = 1
    """Seed of the noise, the same for all models."""
    output_dir: str | None = None
    """Folder for the report; by default below the store's reports/."""
    n_resamples: int = 10_000
    """Bootstrap resamples over prompts."""
    num_inference_steps: int | None = GenerateConfig.num_inference_steps
    """Denoising steps; by default as the training images were generated, or the usual number for this kind of model."""
    guidance_scale: float | None = GenerateConfig.guidance_scale
    """Classifier-free guidance, where 1 disables it; by default as for the number of steps."""
    resolution: int | None = None
    """Side in pixels; the model's own if not given."""
    scheduler: str | None = None
    """Noise scheduler: a short name (ddim, dpm++, euler, …) or a diffusers class; the model's own if not given."""
    negative_prompt: str = ""
    """What the images should not show."""
    batch_size: int = GenerateConfig.batch_size
    """Images generated at once."""
    dtype: Dtype = "auto"
    """auto, float32, float16 or bfloat16; on a CPU auto is float32, on a GPU what the models were made for:
    float16 for U-Nets, bfloat16 for transformers."""
    vae_dtype: Dtype = "auto"
    """What the VAEs decode in: auto, float32, float16 or bfloat16. auto is as --dtype, but float32 for a VAE that overflows in
    float16, such as SDXL's."""
    device: str | None = None
    """cuda, mps or cpu; the best available if not given."""
    workers: int = 1
    """Processes that generate and score, each with the model: one for each GPU, of this machine or of the Ray cluster at
    RAY_ADDRESS."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.models and self.sweep is None:
            raise UsageError("name the tuned model with --model")
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise UsageError(
                f"name can have up to 64 letters, digits, dots, hyphens and underscores, got {self.name[:80]!r}"
            )
        if len(set(self.scorers)) < len(self.scorers):
            raise UsageError(f"a scorer is named twice: {', '.join(self.scorers)}")
        positive("n-resamples", self.n_resamples, 1_000_000)
        self.generate_config((*self.models, self.sweep or "")[0])

    @property
    def scorer_names(self) -> tuple[str, ...]:
        """The scorers without people."""
        return tuple(name for name in self.scorers if name != HUMAN)

    @property
    def asks_people(self) -> bool:
        return self.human or HUMAN in self.scorers

    def generate_config(self, model: str) -> GenerateConfig:
        """How the images of one of the models are generated."""
        return GenerateConfig(
            model=model,
            prompts=self.prompts,
            images_per_prompt=self.images_per_prompt,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            resolution=self.resolution,
            scheduler=self.scheduler,
            negative_prompt=self.negative_prompt,
            batch_size=self.batch_size,
            seed=self.seed,
            limit=self.limit,
            dtype=self.dtype,
            vae_dtype=self.vae_dtype,
            device=self.device,
            workers=self.workers,
        )
