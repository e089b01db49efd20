"""PickScore, arXiv 2305.01569: exp(logit scale) times the cosine of a CLIP that was tuned on people's choices."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..store.runs import quiet_libraries
from . import weights as files
from .device import device_for

if TYPE_CHECKING:
    from PIL.Image import Image

OFFICIAL = "yuvalkirstain/PickScore_v1"
PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


class PickScore:
    """The difference of two scores is the logit of the first being preferred."""

    name = "pickscore"
    needs_prompt = True
    temperature = 1.0

    def __init__(self, weights: str | None = None, device: str | None = None) -> None:
        self.folder = files.find(self.name, weights, OFFICIAL)
        here = (self.folder / "preprocessor_config.json").exists()
        self.processor_folder = self.folder if here else files.from_hub(self.name, PROCESSOR)
        self.device = device
        digest = files.checked(self.folder / "model.safetensors", {})
        self.revision = files.revision(digest, "pil, shortest side, crop, 1", "float32")
        self.sources = {"weights": weights or OFFICIAL, "sha256": digest}

    @cached_property
    def _parts(self) -> tuple[Any, Any, Any]:
        from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

        quiet_libraries()
        model: Any = CLIPModel.from_pretrained(self.folder, use_safetensors=True).float().eval()
        processor = CLIPImageProcessorPil.from_pretrained(self.processor_folder)
        tokenizer = CLIPTokenizer.from_pretrained(self.processor_folder)
        return model.to(device_for(self.device)), processor, tokenizer

    def score(self, prompts: Sequence[str], images: "Sequence[Image]") -> Any:
        """float32 (B,); each distinct prompt is embedded once."""
        import torch
        import torch.nn.functional as F

        model, processor, tokenizer = self._parts
        distinct = list(dict.fromkeys(prompts))
        rows = [distinct.index(prompt) for prompt in prompts]
        with torch.inference_mode():
            pixels = processor(images=list(images), return_tensors="pt")["pixel_values"].to(model.device)
            words = tokenizer(distinct, padding="max_length", truncation=True, return_tensors="pt")
            image = F.normalize(model.get_image_features(pixel_values=pixels).pooler_output.float(), dim=-1)
            text = model.get_text_features(
                input_ids=words.input_ids.to(model.device), attention_mask=words.attention_mask.to(model.device)
            ).pooler_output.float()
            text = F.normalize(text, dim=-1)[rows]
            return (model.logit_scale.exp() * (image * text).sum(-1)).float().cpu().numpy()
