"""Differential privacy: what is clipped, how much noise is added, and how much of the budget a run has spent."""
