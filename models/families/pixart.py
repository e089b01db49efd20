"""PixArt-Sigma and PixArt-Alpha: transformers that are trained as diffusion models."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ...core.errors import UsageError
from .checks import LARGEST, PREDICTIONS, refuse_flow_settings, refuse_others
from .masked import EMBEDS, MASK, masked_arguments, own_tokens
from .settings import PipelineSettings
from .transformer import TransformerFamily

if TYPE_CHECKING:
    from torch import Tensor

    from ..density import Density
    from ..noise import Diffusion

TITLE = "PixArt-Sigma and PixArt-Alpha"
SIGMA, ALPHA = "PixArtSigmaPipeline", "PixArtAlphaPipeline"
PIPELINES = (SIGMA, ALPHA)
TOKENS = {SIGMA: 300, ALPHA: 120}
SIZED = 128  # sample_size from which the models of PixArt-Alpha are told the size of the image


def family(settings: PipelineSettings) -> "PixArt":
    return PixArt(
        name="pixart-alpha" if settings.pipeline_class == ALPHA else "pixart-sigma",
        settings=settings,
        usual=(20, 4.5),  # of both pipelines and model cards
        recipe="pixart-sigma-lora",
        text_encoders=("text_encoder",),
        # cleaned captions differ with what is installed; by default the pipeline generates another size and resizes the image
        call_settings={
            "clean_caption": False,
            "use_resolution_binning": False,
            "max_sequence_length": TOKENS.get(settings.pipeline_class, TOKENS[SIGMA]),
        },
    )


@dataclass(frozen=True, kw_only=True)
class PixArt(TransformerFamily):
    """T5 encodes prompts. The transformer also predicts variances, which are neither used nor trained."""

    model_class: str = "PixArtTransformer2DModel"
    scheduler_class: str = "DDPMScheduler"
    lora_loader: bool = False
    prompt_tensors: tuple[str, ...] = (EMBEDS,)
    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")

    @property
    def _sized(self) -> bool:
        """Whether the transformer is told the size of the image, as its class decides it."""
        sized = self._transformer["use_additional_conditions"]
        return self._transformer["sample_size"] == SIZED if sized is None else bool(sized)

    def noise(self, density: "Density | None" = None, shift: float | None = None) -> "Diffusion":
        refuse_flow_settings(self.settings, density, shift)
        return self._noise

    @cached_property
    def _noise(self) -> "Diffusion":
        from ..noise import Diffusion

        return Diffusion.of(self.settings.parts["scheduler"])

    def encode(self, pipeline: Any, prompts: list[str]) -> "dict[str, list[Tensor]]":
        """prompt_embeds, a list of N (tokens, width)."""
        embeds, mask, _, _ = pipeline.encode_prompt(
            list(prompts),
            do_classifier_free_guidance=False,
            device=pipeline.text_encoder.device,
            clean_caption=self.call_settings["clean_caption"],
            max_sequence_length=self.call_settings["max_sequence_length"],
        )
        return {EMBEDS: own_tokens(embeds, mask)}

    def conditions(
        self, prompts: "dict[str, Tensor]", _crop_coordinates: "Tensor", size: tuple[int, int]
    ) -> "dict[str, Tensor]":
        """With the size that is trained on, as the pipeline tells the size that it generates."""
        if not self._sized:
            return prompts
        height, width = size
        embeds = prompts[EMBEDS]
        resolution = embeds.new_tensor([height, width]).repeat(len(embeds), 1)
        return prompts | {
            "resolution": resolution,
            "aspect_ratio": embeds.new_tensor([height / width]).repeat(len(embeds), 1),
        }

    def predict(self, model: Any, noisy: "Tensor", timesteps: "Tensor", conditions: "dict[str, Tensor]") -> "Tensor":
        predicted = model(
            noisy,
            encoder_hidden_states=conditions[EMBEDS],
            encoder_attention_mask=conditions.get(MASK),
            timestep=timesteps,
            added_cond_kwargs={name: conditions.get(name) for name in ("resolution", "aspect_ratio")},
        ).sample
        return predicted.chunk(2, dim=1)[0] if predicted.shape[1] == 2 * noisy.shape[1] else predicted

    def call_arguments(self, prompt: "dict[str, Tensor]", negative: "dict[str, Tensor]") -> dict[str, Any]:
        return masked_arguments(prompt, negative)

    def prompt_shapes(self) -> dict[str, tuple[int, ...]]:
        transformer = self._transformer
        width = transformer["caption_channels"] or transformer["cross_attention_dim"]
        return {EMBEDS: (self.call_settings["max_sequence_length"], width)}

    def refuse_unusable(self) -> None:
        super().refuse_unusable()
        model, transformer, scheduler = self.settings.model, self._transformer, self.settings.parts["scheduler"]
        channels = transformer["in_channels"]
        refuse_others(
            model,
            {
                "num_train_timesteps": (scheduler["num_train_timesteps"], range(4, LARGEST + 1)),
                "prediction_type": (scheduler["prediction_type"], PREDICTIONS),
                "out_channels of the transformer": (transformer["out_channels"] or channels, (2 * channels, channels)),
            },
        )
        told = self.pipeline_class == ALPHA and transformer["sample_size"] == SIZED
        if self._sized and not told:
            raise UsageError(
                f"{model} cannot be trained: its transformer has use_additional_conditions, the size of the image, which a "
                f"{self.pipeline_class} does not give it"
            )
