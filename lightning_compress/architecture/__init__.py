"""Trained layers made of smaller ones: low rank and depthwise separable."""
