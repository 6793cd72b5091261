"""One optimizer step: which gradients are transformed, checked, skipped or refused."""
