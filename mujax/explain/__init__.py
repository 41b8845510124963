"""What a table says of a model: every number, and its source."""
