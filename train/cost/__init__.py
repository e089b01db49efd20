"""Estimates a training run before it starts: FLOPs, memory, disk and time."""
