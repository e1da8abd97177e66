"""Parts of solvers: steps, differences and models that are no solvers by themselves."""
