"""HPSv3, arXiv 2508.03789: a Qwen2-VL reads the image and the prompt in an instruction; a head on one token gives the score.

Nothing is cached: the image and the prompt run through one model together.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.device import best_device
from ...core.errors import IntegrityError, PrefloopError
from ...core.ids import canonical
from . import checkpoints as files
from .hpsv3_prompt import IMAGE, PADDING, REWARD, SPECIAL, TEMPLATE, token_ids
from .precision import AUTO, torch_dtype
from .qwen2_vl import load_qwen, qwen_settings, refuse_other_preprocessing, renamed, stored_tensors, weight_files
from .qwen2_vl_inputs import patches, read_qwen_vocabulary, resized_size
from .sources import as_source, official

if TYPE_CHECKING:
    from PIL.Image import Image

OFFICIAL = "MizzenAI/HPSv3/HPSv3.safetensors"
BASE = "Qwen/Qwen2-VL-7B-Instruct"
PIXELS = 256 * 28 * 28
HEAD = "rm_head."
_EMBEDDINGS = "language_model.embed_tokens.weight"


class HPSv3:
    """Checkpoint: the published file, with the settings and the tokenizer of Qwen2-VL-7B-Instruct from the hub, or a folder
    that contains all three: safetensors files, config.json and tokenizer.json."""

    name = "hpsv3"
    needs_prompt = True
    temperature = 1.0  # trained on the sigmoid of the difference of two scores
    reads = (OFFICIAL, f"{BASE}/config.json", f"{BASE}/tokenizer.json")
    columns = ("sigma",)
    weights_license = "MIT"  # HPSv3's repository; the settings and the tokenizer of Qwen2-VL are Apache-2.0
    wants_gpu = True

    def __init__(self, checkpoint: str | None = None, device: str | None = None, dtype: str = AUTO) -> None:
        self.path = files.find(self.name, checkpoint) if checkpoint else official(self.name, as_source(OFFICIAL))
        self.files = weight_files(self.path)
        self.tensors = stored_tensors(self.files)
        _refuse_other_head(self.path, {name: tensor.shape for name, tensor in self.tensors.items()})
        config, tokenizer = (self._beside(name) for name in ("config.json", "tokenizer.json"))
        self.settings = qwen_settings(config)
        refuse_other_preprocessing(config.with_name("preprocessor_config.json"), self.settings["vision_config"])
        self.vocabulary = read_qwen_vocabulary(tokenizer, tuple({*SPECIAL, PADDING} - {REWARD}))
        self.reward_id = self._reward_id()
        self.device = device
        self.dtype = _automatic(device) if dtype == AUTO else dtype
        self.digests = {path: files.checked(path, {}) for path in self.files}
        self.revision = files.revision(
            canonical(sorted(self.digests.values())),
            canonical(self.settings),
            self.vocabulary.digest,
            TEMPLATE,
            f"{PIXELS} pixels, bicubic on 8 bits, positions in a row, bfloat16 frequencies, head float32, 1",
            self.dtype,
        )
        self.sources = {
            "checkpoint": checkpoint or OFFICIAL,
            "sha256": {path.name: digest for path, digest in self.digests.items()},
        }

    @staticmethod
    def check_weights(checkpoint: str | None) -> str:
        """Read names and shapes, the settings and the tokenizer; no weights. Returns a line that says what they are."""
        scorer = HPSv3(checkpoint)
        return (
            f"{len(scorer.tensors)} tensors of {scorer._n_parameters / 1e9:.3g} billion numbers with HPSv3's head; "
            f"{REWARD} is token {scorer.reward_id}; runs in {scorer.dtype}"
        )

    def _beside(self, name: str) -> Path:
        """A file of the checkpoint's folder, or that of the base model if the checkpoint is only a file."""
        if not self.path.is_dir():
            return official(self.name, as_source(f"{BASE}/{name}"))
        if not (self.path / name).is_file():
            raise PrefloopError(f"no {name} in {self.path}; put that of {BASE} there")
        return self.path / name

    def _reward_id(self) -> int:
        """The tokenizer's number of the reward token, or else the next one, which HPSv3's training gave it.

        Raises:
            IntegrityError: if it has no embedding of its own.
        """
        shape = next((tensor.shape for name, tensor in self.tensors.items() if renamed(name) == _EMBEDDINGS), ())
        n_embeddings = shape[0] if len(shape) == 2 else 0
        named = self.vocabulary.added.get(REWARD)
        number = self.vocabulary.next_id if named is None else named
        if (
            n_embeddings < self.vocabulary.next_id
            or number >= n_embeddings
            or (named is None and number != n_embeddings - 1)
        ):
            raise IntegrityError(
                f"{self.path} has {n_embeddings} token embeddings, and {self.vocabulary.path} has {self.vocabulary.next_id} "
                f"tokens, {REWARD} {'not ' if named is None else ''}among them: the reward token has no embedding of its "
                "own; give HPSv3's weights and the tokenizer they were trained with"
            )
        return number

    @property
    def _n_parameters(self) -> int:
        """Without the language head, which is not used."""
        return sum(math.prod(tensor.shape) for name, tensor in self.tensors.items() if not name.startswith("lm_head."))

    def memory(self, batch_size: int) -> int:
        """Bytes of the weights and of the largest layer's activations for a batch, prompts of 100 tokens."""
        width = 4 if self.dtype == "float32" else 2
        text, vision = self.settings["text_config"], self.settings["vision_config"]
        patch, merge = vision["patch_size"], vision["spatial_merge_size"]
        n_patches = PIXELS // patch**2
        # a layer holds its input, the normalized input and the MLP's gate, values and product at once
        language = (n_patches // merge**2 + 100 + len(self._tokens("", 0))) * (
            3 * text["hidden_size"] + 3 * text["intermediate_size"]
        )
        seeing = n_patches * vision["embed_dim"] * (3 + 2 * vision["mlp_ratio"])
        return width * (self._n_parameters + batch_size * max(language, seeing))

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        import torch

        state: dict[str, Any] = {}
        for path in self.files:
            state |= files.load_tensors(path, self.digests[path])
        head = torch.nn.Sequential(
            torch.nn.Linear(self.settings["text_config"]["hidden_size"], 1024),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.05),  # only here to number the layers as in the checkpoint: off in eval
            torch.nn.Linear(1024, 16),
            torch.nn.ReLU(),
            torch.nn.Linear(16, 2),
        )
        weights = {name.removeprefix(HEAD): state.pop(name).float() for name in list(state) if name.startswith(HEAD)}
        try:
            head.load_state_dict(weights)
        except RuntimeError as error:
            raise IntegrityError(f"the head in {self.path} does not fit the settings' hidden_size") from error
        n_tokens = next(tensor.shape[0] for name, tensor in self.tensors.items() if renamed(name) == _EMBEDDINGS)
        image_id = self.vocabulary.added[IMAGE]
        model = load_qwen(self.settings, state, n_tokens, image_id, self.path, torch_dtype(self.dtype))
        for name, buffer in model.named_buffers():
            if name.endswith("inv_freq"):  # HPSv3's code casts the rotary frequencies too, in training and after it
                buffer.copy_(buffer.bfloat16())
        device = best_device(self.device)
        return model.to(device), head.eval().to(device)

    def _tokens(self, prompt: str, n_image_tokens: int) -> list[int]:
        added = self.vocabulary.added | {REWARD: self.reward_id}
        return token_ids(prompt, n_image_tokens, self.vocabulary.encode, added.__getitem__)

    def score(self, prompts: Sequence[str], images: "Sequence[Image]") -> Any:
        """float32 (B,), the mean of the preference; its authors' averages of models are about -1 to 12."""
        return self.score_columns(prompts, images)[:, 0]

    def score_columns(self, prompts: Sequence[str], images: "Sequence[Image]") -> Any:
        """float32 (B, 2): the mean of the preference, and its standard deviation. NaN for an image that is more than 200
        times as long as wide, which the model does not take."""
        import numpy as np

        vision = self.settings["vision_config"]
        factor = vision["patch_size"] * vision["spatial_merge_size"]
        results = np.full((len(images), 2), np.nan, np.float32)
        sizes = {row: resized_size(*image.size, factor, PIXELS) for row, image in enumerate(images)}
        fitting = {row: size for row, size in sizes.items() if size is not None}
        if fitting:
            results[list(fitting)] = self._forward(
                [prompts[row] for row in fitting], [images[row] for row in fitting], list(fitting.values())
            )
        return results

    def _forward(self, prompts: Sequence[str], images: "Sequence[Image]", sizes: Sequence[tuple[int, int]]) -> Any:
        """float32 (B, 2)."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        model, head = self._parts
        vision = self.settings["vision_config"]
        patch, merge, frames = (vision[name] for name in ("patch_size", "spatial_merge_size", "temporal_patch_size"))
        pixels, grids = zip(
            *(patches(image, size, patch, merge, frames) for image, size in zip(images, sizes, strict=True)),
            strict=True,
        )
        rows = [
            torch.tensor(self._tokens(prompt, grid[0] * grid[1] // merge**2))
            for prompt, grid in zip(prompts, grids, strict=True)
        ]
        ids = pad_sequence(rows, batch_first=True, padding_value=self.vocabulary.added[PADDING])
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        at = torch.tensor([row.tolist().index(self.reward_id) for row in rows])
        # HPSv3 was trained with every token one position after the one before, those of the image too
        positions = torch.arange(ids.shape[1]).expand(3, *ids.shape)
        device = model.device
        with torch.inference_mode():
            hidden = model(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                position_ids=positions.to(device),
                pixel_values=torch.cat(pixels).to(device, model.dtype),
                image_grid_thw=torch.tensor([(1, *grid) for grid in grids], device=device),
                use_cache=False,
            ).last_hidden_state
            mean, log_sigma = head(hidden[torch.arange(len(rows)), at.to(device)].float()).unbind(-1)
            return torch.stack([mean, log_sigma.exp()], dim=-1).cpu().numpy()


def _automatic(device: str | None) -> str:
    return "bfloat16" if best_device(device).startswith("cuda") else "float32"


def _refuse_other_head(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """
    Raises:
        IntegrityError: if it has no reward head, or one of other layers.
    """
    head = {name: shape for name, shape in shapes.items() if name.startswith(HEAD)}
    if not head:
        raise IntegrityError(
            f"{path} has no reward head ({HEAD}…): it is a Qwen2-VL or another model, not HPSv3; give {OFFICIAL} or a folder "
            "with its weights"
        )
    hidden = head.get(f"{HEAD}0.weight", (0, 0))[-1]
    expected: dict[str, tuple[int, ...]] = {}
    for number, (to, of) in {0: (1024, hidden), 3: (16, 1024), 5: (2, 16)}.items():
        expected |= {f"{HEAD}{number}.weight": (to, of), f"{HEAD}{number}.bias": (to,)}
    for name in sorted(head.keys() | expected.keys()):
        if head.get(name) != expected.get(name):
            raise IntegrityError(
                f"{path} does not have HPSv3's head: {name} is {_shape(head.get(name))}, expected {_shape(expected.get(name))}"
            )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else " x ".join(map(str, shape))
