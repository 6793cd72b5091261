"""What tells a run from others: objects by value, the user's code, versions and commits."""
