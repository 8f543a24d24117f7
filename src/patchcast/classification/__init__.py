"""Classifiers from pretrained networks: their data, model, training, and the folder that holds one."""
