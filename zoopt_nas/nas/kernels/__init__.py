"""How operators are computed, never what they compute."""
