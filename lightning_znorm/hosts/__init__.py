"""The callers of the engine: a Trainer, its Tuner, and an optimizer in a plain loop."""
