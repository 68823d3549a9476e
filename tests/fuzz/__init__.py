"""Fuzzing of the parsers that see what strangers send: `python -m tests.fuzz`. What it found stays in `seeds/`."""
