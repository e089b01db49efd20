"""A scorer in a distribution of its own: how much greener than red an image is."""

import numpy as np


class Greenness:
    name = "greenness"
    revision = "1"
    needs_prompt = False

    def score(self, prompts, images):  # noqa: ARG002
        means = np.array([np.asarray(image, np.float32).reshape(-1, 3).mean(0) for image in images])
        return means[:, 1] - means[:, 0]
