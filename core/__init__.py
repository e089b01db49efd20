"""What everything else stands on: errors, ids, files, locks, texts and signals. Imports nothing else of prefloop, and no torch."""
