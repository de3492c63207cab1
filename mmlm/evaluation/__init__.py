"""Figures about a trained model, beside baselines that have to be beaten."""
