"""Algorithm 1 of the paper: the bilevel objective, the updates of alpha, the search loop."""
