"""The verbs of the command line, a module each. What is heavy (jax, the figures) is imported inside
their functions."""
