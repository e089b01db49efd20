"""What a run will take, before it runs: counted FLOPs, memory and time."""
