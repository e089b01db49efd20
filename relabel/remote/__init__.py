"""Scorers over HTTP: asking one that runs elsewhere, and serving one of ours."""
