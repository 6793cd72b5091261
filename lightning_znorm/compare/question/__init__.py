"""The question of a comparison: methods, settings, seeds, and the metrics that judge them."""
