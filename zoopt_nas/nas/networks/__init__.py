"""The modules, and what alpha means for them."""
