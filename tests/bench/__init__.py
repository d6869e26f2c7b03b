"""Speed and memory, each beside its floor and its peer; figures, not tests: nothing here decides whether the suite is green."""
