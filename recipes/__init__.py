"""Hydra recipes: `train.yaml` and its groups; they travel in the wheel."""
