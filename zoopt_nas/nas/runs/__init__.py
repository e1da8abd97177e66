"""What a search and a retraining share: the run folder, the loop over epochs, their setup."""
