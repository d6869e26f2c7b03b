"""Certificates for tests of TLS: an authority, and what it issues, as files."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


class Authority:
    """RSA, as most devices have it. `file` is its certificate."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = rsa.generate_private_key(65537, 2048)
        self._name = _name(name)
        self.file = folder / f"{name}.pem"
        made = self._begun(self._name, self._key.public_key())
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.file.write_bytes(made.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))

    def issue(self, name: str, *, ended: bool = False) -> tuple[Path, Path]:
        """A certificate and its key, for a client or a server on this machine; `ended` yesterday."""
        key = rsa.generate_private_key(65537, 2048)
        made = self._begun(_name(name), key.public_key(), days=-1 if ended else 1)
        if name == "node":
            alternatives = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            made = made.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        certificate, secret = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        certificate.write_bytes(made.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))
        secret.touch(mode=0o600)
        secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return certificate, secret

    def _begun(self, subject: x509.Name, key: rsa.RSAPublicKey, days: int = 1) -> x509.CertificateBuilder:
        end = datetime.now(UTC) + timedelta(days=days)
        begun = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key)
        return begun.serial_number(x509.random_serial_number()).not_valid_before(end - timedelta(days=1)).not_valid_after(end)


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
