"""The science of transfer, from losses alone: optima, laws, drift and verdicts."""
