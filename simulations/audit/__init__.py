"""Attacks on our own promises: each is run against the shipped code, and once where it must succeed.

An audit can only contradict a claim, never prove it: how small a breach it would see is stated beside each result.
"""
