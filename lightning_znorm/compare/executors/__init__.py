"""Executors, which perform runs side by side, each in a separate process."""
