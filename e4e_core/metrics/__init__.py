"""Measures of an encoder, its generator and its directions; `python -m e4e_core.metrics` runs them all.

What needs a face detector is handed in as a function (`edits.Look`), because this package knows no faces.
"""
