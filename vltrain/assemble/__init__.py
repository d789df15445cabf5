"""The composition root: from a checked run config to objects that run. Nothing below knows the
whole."""
