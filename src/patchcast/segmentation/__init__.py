"""Segmenters from pretrained networks: their data, model, folder and predictions."""
