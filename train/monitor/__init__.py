"""Following a run while it trains: validation, samples, plots, and what they mean."""
