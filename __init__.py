"""A preference loop for text-to-image diffusion models: generate, relabel, train, eval, around one store."""

__version__ = "0.1.0"
