"""`patchcast compare`: the rows of runs and their baselines, a supervised network among them, in one table."""
