"""One run: how it is made, performed and recorded, and where its result is kept."""
