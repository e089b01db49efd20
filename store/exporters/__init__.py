"""Labelled pairs out of a store: one query selects, a writer for each format, one folder that is there whole or not at all."""
