"""One run: how it is made, watched and performed, and where its result is kept."""
