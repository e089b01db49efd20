"""Settings of `eval`."""

from dataclasses import dataclass, field

from ..core.errors import UsageError
from ..generate.config import GenerateConfig, positive


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    model: str
    """The tuned model."""
    against: str | None = None
    """The model it is compared with; None is the one that it was trained on."""
    prompts: str | None = None
    """None is shapes-heldout, for the built-in model and what was trained on it alone."""
    scorers: tuple[str, ...] = ("pickscore", "hps", "clip", "aesthetics")
    weights: dict[str, str] = field(default_factory=dict)
    images_per_prompt: int = 1
    """Pairs per prompt; both models draw from the same noise."""
    num_inference_steps: int | None = GenerateConfig.num_inference_steps
    guidance_scale: float | None = GenerateConfig.guidance_scale
    resolution: int | None = None
    scheduler: str | None = None
    negative_prompt: str = ""
    batch_size: int = GenerateConfig.batch_size
    seed: int = 1
    limit: int | None = None
    dtype: str = "auto"
    device: str | None = None
    report: str | None = None
    """Folder of the report; None is one below the store's reports/."""
    n_resamples: int = 10_000
    """Of the bootstrap over prompts."""

    def __post_init__(self) -> None:
        if not self.scorers:
            raise UsageError("name at least one --scorer")
        if len(set(self.scorers)) < len(self.scorers):
            raise UsageError(f"a scorer is named twice: {', '.join(self.scorers)}")
        positive("n-resamples", self.n_resamples, 1_000_000)
        self.drawing(self.model)

    def drawing(self, model: str) -> GenerateConfig:
        """How pictures of one of the two models are drawn."""
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
            dtype=self.dtype,  # type: ignore[arg-type]  # checked there
            device=self.device,
        )
