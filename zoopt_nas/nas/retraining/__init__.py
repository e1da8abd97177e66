"""Training of a found network from scratch, in one process or several."""
