"""Confidences: ``function(logits, earlier) -> scores``, one in each file, found by its name."""
