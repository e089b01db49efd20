"""What a finished run leaves: weights, their lineage, the model card, other formats, the hub."""
