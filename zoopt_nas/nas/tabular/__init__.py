"""Search benchmarks on tables of trained networks; needs no torch."""
