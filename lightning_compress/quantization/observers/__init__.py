"""Observers, one function in one file each: from what has been seen of a tensor, the range its grid shall cover."""
