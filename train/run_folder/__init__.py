"""The folder of a training run: who may begin in it, what belongs to it, and how a result gets into it."""
