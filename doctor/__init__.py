"""What this machine has for prefloop: versions, devices, disk, scorers, and the models in the cache of the hub."""
