"""Shapes of schedules, one function in one file: ``shape(progress, final)`` is the target at ``progress`` in (0, 1]."""
