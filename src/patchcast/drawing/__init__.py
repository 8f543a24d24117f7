"""Pictures: what a pretrainer predicts, completes or samples, as figures and image sheets."""
