"""Runs: a recipe resolved, built, trained and saved in a folder. Start with `run.py`."""
