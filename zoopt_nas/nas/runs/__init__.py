"""The run folder, the epoch loop and the setup, for a search and a retraining."""
