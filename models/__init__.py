"""Predict: architecture, memory, step times, serving. Pure arithmetic; knows no processes and no Optuna."""
