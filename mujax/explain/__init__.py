"""Every number that a table gives a model, and the source of each."""
