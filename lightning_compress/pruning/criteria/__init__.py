"""Criteria, one function in one file: how much a weight or a neuron is worth."""
