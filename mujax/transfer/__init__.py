"""Measuring transfer from result rows: curves, optima, drift, and their report."""
