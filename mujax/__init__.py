"""mujax: a laboratory for hyperparameter transfer (muP) in JAX."""

__version__ = "0.1.0"
