"""Scores of personalised cascades and of stages: features, metrics, grids and reports."""
