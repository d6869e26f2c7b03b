"""What is kept from libraries while they are imported, and not afterwards."""

from __future__ import annotations

import ssl
import subprocess
import sys

CODE = """
import ssl, sys
from medmesh.client import http
from medmesh.telemetry import traces
print("psutil" in sys.modules, max(c.cert_store_stats()["x509"] for c in __import__("gc").get_objects() if isinstance(c, ssl.SSLContext)))
"""


def test_the_machines_authorities_and_what_nobody_asks_for_are_not_loaded() -> None:
    if not ssl.create_default_context().cert_store_stats()["x509"]:
        return  # a machine without any
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "0"]


def test_who_asks_for_the_machines_authorities_afterwards_has_them() -> None:
    from medmesh.absent import no_authorities

    before = ssl.create_default_context().cert_store_stats()
    with no_authorities():
        assert ssl.create_default_context().cert_store_stats()["x509"] == 0
    assert ssl.create_default_context().cert_store_stats() == before
