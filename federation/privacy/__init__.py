"""Differential privacy: what is released, at which cost, and with which noise.

events.py      a release as the accountant sees it
accounting.py  ε of many events (PLD), and the noise multiplier that a target asks for
noise.py       noise from a CSPRNG, rounded to a grid, and discrete noise for the ring of secure aggregation
sampling.py    Poisson sampling of persons from the same source
statement.py   what is published beside a trained model
"""
