"""The fit and speed of a config on its pod, by the TPU compiler without a TPU."""
