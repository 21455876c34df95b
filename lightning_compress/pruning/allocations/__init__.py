"""Allocations, one function in one file: ``f(scores, drop)`` says how many of the ``drop`` entries each tensor gives.

As ``drop`` grows, no tensor may give fewer: what has been pruned stays pruned.
"""
