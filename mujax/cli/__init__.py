"""The verbs of the command line, one module each.

Slow imports (jax, the figures) stand inside their functions.
"""
