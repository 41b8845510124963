"""Does a config fit its pod, and how fast should it be? By the TPU compiler, ahead of time and
without a TPU."""
