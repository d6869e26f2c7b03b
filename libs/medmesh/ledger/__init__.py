"""The audit log's mathematics: RFC 6962 tree, C2SP tiles, signed notes, cosignatures, policies, proofs, and the verifier.

Importing it pulls in the standard library, `cryptography` and `medmesh.errors` and nothing else, so that an auditor can. Functions are
pure; the verifier reads files, and `remote` a log that is served.
"""
