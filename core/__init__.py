"""The floor: errors, ids, files, locks, texts and signals. Imports nothing else of prefloop, and no torch."""
