"""The door for hospitals, people and auditors: it authenticates, validates and passes on; it computes nothing."""
