"""Penalties, one function in one file: ``f(module, groups)`` gives, by parameter, the gradient that shrinks it."""
