"""Fast implementations of operators on a CPU."""
