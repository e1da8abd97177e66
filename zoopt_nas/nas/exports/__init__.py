"""A found network for use without this package."""
