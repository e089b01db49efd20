"""LAION aesthetics v2: a head of linear layers on the normalised CLIP ViT-L/14 embedding of a picture; blind to prompts."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..store.errors import IntegrityError, PrefloopError
from ..store.runs import quiet_libraries
from . import weights as files
from .device import device_for

if TYPE_CHECKING:
    from PIL.Image import Image

BACKBONE = "openai/clip-vit-large-patch14"
HEAD = "sac+logos+ava1-l14-linearMSE.pth"
PINS = {HEAD: "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0"}
HEAD_URL = (
    "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/sac%2Blogos%2Bava1-l14-linearMSE.pth"
)


class Aesthetics:
    """Weights: the head's file, beside OpenAI's backbone from the hub, or a folder that holds both."""

    name = "aesthetics"
    needs_prompt = False
    temperature = 1.0

    def __init__(self, weights: str | None = None, device: str | None = None) -> None:
        if weights is None:
            raise PrefloopError(
                f"aesthetics needs the file of its head: fetch {HEAD_URL} and give --weights aesthetics=FILE; "
                "`--weights shapes` takes the built-in world's"
            )
        found = files.find(self.name, weights, "")
        if found.is_dir():
            self.head, self.backbone = _head_in(found), found
        else:
            self.head, self.backbone = found, files.from_hub(self.name, BACKBONE)
        self.device = device
        digest = files.checked(self.head, PINS)
        backbone = files.checked(self.backbone / "model.safetensors", {})
        self.revision = files.revision(digest, backbone, "pil, shortest side, crop, 1", "float32")
        self.sources = {"weights": weights, "sha256": digest, "backbone_sha256": backbone}

    @cached_property
    def _parts(self) -> tuple[Any, Any, Any, Any]:
        from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

        quiet_libraries()
        device = device_for(self.device)
        weight, bias = collapsed(files.load_tensors(self.head), self.head)
        model: Any = CLIPVisionModelWithProjection.from_pretrained(self.backbone, use_safetensors=True)
        model = model.float().eval().to(device)
        processor = CLIPImageProcessorPil.from_pretrained(self.backbone)
        return model, processor, weight.to(device), bias.to(device)

    def score(self, prompts: Sequence[str], images: "Sequence[Image]") -> Any:  # noqa: ARG002  # blind to prompts
        """float32 (B,), about 1 to 10."""
        import torch
        import torch.nn.functional as F

        model, processor, weight, bias = self._parts
        with torch.inference_mode():
            pixels = processor(images=list(images), return_tensors="pt")["pixel_values"].to(weight.device)
            embedding = F.normalize(model(pixel_values=pixels).image_embeds.float(), dim=-1)
            return (embedding @ weight + bias).cpu().numpy()


def collapsed(state: dict[str, Any], path: Path) -> tuple[Any, Any]:
    """The head's layers as one: weight (E,) and bias (). There is nothing between them, so their product is exact.

    Raises:
        IntegrityError: where the layers do not follow one another, or end in more than one number.
    """
    import torch

    numbers = sorted({int(name.split(".")[1]) for name in state if name.startswith("layers.")})
    weight, bias = None, None
    for number in numbers:
        w, b = state[f"layers.{number}.weight"].double(), state[f"layers.{number}.bias"].double()
        if weight is not None and w.shape[1] != weight.shape[0]:
            break
        bias = b if bias is None else w @ bias + b
        weight = w if weight is None else w @ weight
    else:
        if weight is not None and bias is not None and weight.shape[0] == 1:
            return weight[0].to(torch.float32), bias[0].to(torch.float32)
    raise IntegrityError(f"{path} is no aesthetics head: its linear layers do not lead to one number")


def _head_in(folder: Path) -> Path:
    names = sorted([*folder.glob("head.*"), *folder.glob("*.pth")])
    if not names:
        raise PrefloopError(f"there is no aesthetics head in {folder}; put head.safetensors or {HEAD} there")
    return names[0]
