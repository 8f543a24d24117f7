"""Runs: a recipe resolved, built, trained and kept in a folder. Start at `run.py`."""
