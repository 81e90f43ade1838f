"""Trained models as people use them: written by a run, loaded anywhere, asked for predictions, exported.

`saved.load_model` is where to begin.
"""
