"""Saved queries, their parameters, and the description of the schema."""
