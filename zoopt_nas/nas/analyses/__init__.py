"""What searches do, measured and drawn: landscapes, convergence, sweeps, diagnostics."""
