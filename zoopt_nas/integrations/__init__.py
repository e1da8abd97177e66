"""Zero-order optimization inside other libraries: one module for each, named after it."""
