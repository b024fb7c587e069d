"""Evaluation, prediction, and comparison of trained classifiers."""
