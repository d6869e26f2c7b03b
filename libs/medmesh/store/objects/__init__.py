"""Bytes named by their SHA-256. Kept and sealed objects lie in S3, scratch ones in a spool folder (or S3 where no disk is shared)."""
