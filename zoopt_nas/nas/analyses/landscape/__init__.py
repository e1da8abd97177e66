"""The loss over a plane of alpha: what it is, its file, its computation, its figure."""
