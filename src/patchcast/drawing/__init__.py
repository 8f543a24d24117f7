"""Figures and image grids of what a pretrainer predicts, completes or samples."""
