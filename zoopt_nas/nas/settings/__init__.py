"""Every setting of a run, its default and its rules. Imports no torch."""
