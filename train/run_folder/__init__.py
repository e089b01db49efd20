"""The folder of a training run: whose files are in it, and how a result gets into it."""
