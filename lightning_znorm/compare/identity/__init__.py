"""The identity of a run: objects by value, the user's code, versions and commits."""
