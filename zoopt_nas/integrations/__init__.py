"""Solvers as optimizers of other libraries, one module per library."""
