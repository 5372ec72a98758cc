"""Measurements on solvers and models: each script measures, saves, and plots from what it saved."""
