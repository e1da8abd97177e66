"""Results of many runs as one page, beside the published figures."""
