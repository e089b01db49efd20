"""Merge, back up, compact and migrate stores, and remove unreferenced images."""
