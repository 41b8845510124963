"""Whether a config fits its pod, and how fast it should be, by the TPU compiler without a TPU."""
