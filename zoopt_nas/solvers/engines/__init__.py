"""Building blocks of solvers: differences, descent steps and models."""
