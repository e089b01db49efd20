"""What a run shows while it trains: validation, samples, plots, and what they mean."""
