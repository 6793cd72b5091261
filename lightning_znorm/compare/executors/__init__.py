"""Where runs are done: side by side, each in a process of its own."""
