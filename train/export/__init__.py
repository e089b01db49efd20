"""The result of a finished run: weights, their lineage, the model card, other formats, the hub."""
