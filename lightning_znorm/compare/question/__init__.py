"""What is compared: methods, settings, seeds, and the metric that decides."""
