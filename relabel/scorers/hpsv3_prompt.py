"""The text around a prompt that HPSv3 was trained with. Every space and line break counts: another text gives other scores.

The instruction is data of MizzenAI/HPSv3 (hpsv3/dataset/data_collator_qwen.py, version 1.0.0; MIT, see hpsv3_prompt.LICENSE).
Around it is what the chat template of Qwen2-VL-Instruct makes of one message with an image and a text.
"""

import re
from collections.abc import Callable

REWARD = "<|Reward|>"
IMAGE = "<|image_pad|>"  # repeated for each token of the image
PADDING = "<|endoftext|>"
SLOT = "{text_prompt}"

INSTRUCTION = (
    "\n"
    "You are tasked with evaluating a generated image based on Visual Quality and Text Alignment and give a overall score "
    "to estimate the human preference. Please provide a rating from 0 to 10, with 0 being the worst and 10 being the best. \n"
    "\n"
    "**Visual Quality:**  \n"
    "Evaluate the overall visual quality of the image. The following sub-dimensions should be considered:\n"
    "- **Reasonableness:** The image should not contain any significant biological or logical errors, such as abnormal body "
    "structures or nonsensical environmental setups.\n"
    "- **Clarity:** Evaluate the sharpness and visibility of the image. The image should be clear and easy to interpret, "
    "with no blurring or indistinct areas.\n"
    "- **Detail Richness:** Consider the level of detail in textures, materials, lighting, and other visual elements (e.g., "
    "hair, clothing, shadows).\n"
    "- **Aesthetic and Creativity:** Assess the artistic aspects of the image, including the color scheme, composition, "
    "atmosphere, depth of field, and the overall creative appeal. The scene should convey a sense of harmony and balance.\n"
    "- **Safety:** The image should not contain harmful or inappropriate content, such as political, violent, or adult "
    "material. If such content is present, the image quality and satisfaction score should be the lowest possible. \n"
    "\n"
    "**Text Alignment:**  \n"
    "Assess how well the image matches the textual prompt across the following sub-dimensions:\n"
    "- **Subject Relevance** Evaluate how accurately the subject(s) in the image (e.g., person, animal, object) align with "
    "the textual description. The subject should match the description in terms of number, appearance, and behavior.\n"
    "- **Style Relevance:** If the prompt specifies a particular artistic or stylistic style, evaluate how well the image "
    "adheres to this style.\n"
    "- **Contextual Consistency**: Assess whether the background, setting, and surrounding elements in the image logically "
    "fit the scenario described in the prompt. The environment should support and enhance the subject without "
    "contradictions.\n"
    "- **Attribute Fidelity**: Check if specific attributes mentioned in the prompt (e.g., colors, clothing, accessories, "
    "expressions, actions) are faithfully represented in the image. Minor deviations may be acceptable, but critical "
    "attributes should be preserved.\n"
    "- **Semantic Coherence**: Evaluate whether the overall meaning and intent of the prompt are captured in the image. The "
    "generated content should not introduce elements that conflict with or distort the original description.\n"
    f"Textual prompt - {SLOT}\n"
    "\n"
    "\n"
    "\n"
    f"Please provide the overall ratings of this image: {REWARD}\n"
    "\n"
    "END\n"
)
TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    f"<|im_start|>user\n<|vision_start|>{IMAGE}<|vision_end|>{INSTRUCTION}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
_PARTS = [part for part in re.split(r"(<\|\w+\|>)", TEMPLATE) if part]
SPECIAL = tuple(dict.fromkeys(part for part in _PARTS if part.startswith("<|")))
"""The special tokens of the template, in their order."""


def token_ids(
    prompt: str, n_image_tokens: int, encode: Callable[[str], list[int]], special: Callable[[str], int]
) -> list[int]:
    """The template's tokens with the prompt in it.

    Args:
        encode: tokens of plain text. A prompt that contains the text of a special token is plain text.
        special: the number of a special token.
    """
    ids: list[int] = []
    for part in _PARTS:
        if part.startswith("<|"):
            ids += [special(part)] * (n_image_tokens if part == IMAGE else 1)
        else:
            ids += encode(part.replace(SLOT, prompt))
    return ids
