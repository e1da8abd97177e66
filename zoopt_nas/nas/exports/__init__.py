"""Exports of a found network for use without this package."""
