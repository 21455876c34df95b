"""Losses on outputs, one function in one file: ``loss(student, teacher, temperature=..., labels=...)``, batch mean."""
