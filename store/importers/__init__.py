"""Preference datasets into a store: a reader yields batches of rows, a layout turns them into records, one loop stores them."""
