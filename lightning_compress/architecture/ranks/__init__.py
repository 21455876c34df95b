"""One rule for ranks a file: ``rule(singular values, shape) -> rank``, found by its name."""
