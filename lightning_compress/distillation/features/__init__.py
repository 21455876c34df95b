"""Losses on features, one function in one file: ``loss(student, teacher)``, the mean over the batch."""
