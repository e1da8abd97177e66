"""The package's own kernels for a CPU: C that is compiled when it is first needed."""
