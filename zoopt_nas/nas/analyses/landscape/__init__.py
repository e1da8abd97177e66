"""The loss over a plane of alpha: definition, file, computation, figure."""
