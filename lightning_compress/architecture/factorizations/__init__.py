"""One factorisation a file, found by its name."""
