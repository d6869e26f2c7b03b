"""A witness of logs (C2SP tlog-witness v1.0.0) that a hospital or a regulator runs: a folder and a port; needs `cryptography`."""
