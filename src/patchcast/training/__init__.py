"""The training engine: `loop.train` reads from top to bottom what happens to a batch."""
