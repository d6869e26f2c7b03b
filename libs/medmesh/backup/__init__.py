"""Backups of a platform: database and kept objects, encrypted under a key that the platform does not have, without any key of it."""
