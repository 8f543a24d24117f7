"""The training engine: a `Pretrainer` under Lightning."""
