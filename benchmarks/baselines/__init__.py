"""Baselines in the benchmark's one harness, by nephi's own features, losses and loop where a paper allows it.

A module a baseline; each says which paper it follows and how it differs. ``harness.py``: reading a prepared pair,
optimising on it, writing the maps. ``networks.py``: what the learned ones share; ``train_baselines.py`` trains them.
"""
