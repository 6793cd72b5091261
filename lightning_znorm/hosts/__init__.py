"""Where optimizer steps come from: a Trainer, its Tuner, a plain loop."""
