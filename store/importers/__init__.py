"""Preference data sets into a store: a reader gives batches of rows, a layout makes records of them, one loop keeps them."""
