"""The audit log's mathematics: RFC 6962 tree, C2SP tiles, signed notes and proofs. Pure functions; no I/O but files."""
