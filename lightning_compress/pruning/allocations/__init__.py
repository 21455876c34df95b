"""Allocations, one function in one file: ``f(scores, drop)`` says how many of the ``drop`` entries each tensor gives."""
