"""One weight step: where it runs, in which precision, at which learning rate."""
