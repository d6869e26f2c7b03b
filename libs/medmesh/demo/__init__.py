"""The demonstration: a whole federation on one machine, broken on purpose and checked from outside."""
