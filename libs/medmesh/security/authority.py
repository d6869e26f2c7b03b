"""The local certification authority: server certificates for the platform, node certificates for hospitals by CSR."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from medmesh.errors import Problem
from medmesh.security.keys import read_secret, write_secret

_URN = "urn:medmesh:hospital:{}:node:{}"
_PERSON = "urn:medmesh:person:{}"
_PEOPLE = "medmesh people"
_SKEW = timedelta(minutes=5)


def new_key() -> ec.EllipticCurvePrivateKey:
    """A P-256 key: what TLS stacks and hardware tokens alike accept."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS#8 PEM, unencrypted; for files 0600 only."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The key in a PEM file 0600."""
    key = load_pem_private_key(read_secret(path), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Problem("security.key_unreadable", file=path.name, reason="not a P-256 key")
    return key


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the certificate, hexadecimal."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def _name(common: str, organisation: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation), x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, days: float, start: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - _SKEW)
        .not_valid_after(start + timedelta(days=days))
    )


class Authority:
    """The authority's key and certificate, in a folder only the platform's operator may read."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self.certificate = certificate

    @classmethod
    def create(cls, folder: Path, *, name: str = "medmesh local CA") -> Authority:
        """Make a new one, good for ten years."""
        key = new_key()
        subject = _name(name, "medmesh")
        certificate = (
            _builder(subject, subject, key.public_key(), 3653, datetime.now(UTC))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        write_secret(folder / "ca.key", key_pem(key))
        (folder / "ca.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        return cls(key, certificate)

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """The one in a folder."""
        return cls(load_key(folder / "ca.key"), x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes()))

    @classmethod
    def ensure(cls, folder: Path) -> Authority:
        """The one in a folder, made when there is none."""
        return cls.load(folder) if (folder / "ca.pem").exists() else cls.create(folder)

    @property
    def certificate_pem(self) -> str:
        """What everybody may know."""
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def issue_server(
        self, names: Sequence[str], *, days: float = 397, key: ec.EllipticCurvePrivateKey | None = None
    ) -> tuple[bytes, bytes]:
        """(certificate PEM, key PEM) for a server known by `names` (host names or addresses), with a new key unless it has one."""
        key = key or new_key()
        certificate = (
            self._leaf(_name(names[0], "medmesh"), key.public_key(), days, None)
            .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(Encoding.PEM), key_pem(key)

    def sign_node(self, csr_pem: str, hospital: str, node: str, *, days: float = 90, now: datetime | None = None) -> x509.Certificate:
        """A node's certificate from its request. What the request says of itself is ignored: the approval decided who it is."""
        request = read_request(csr_pem)
        public = request.public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)
        return (
            self._leaf(_name(node, hospital), public, days, now)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(_URN.format(hospital, node))]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def sign_person(self, csr_pem: str, name: str, *, days: float = 30, now: datetime | None = None) -> x509.Certificate:
        """A person's client certificate from their request. It names a person and no node, so that neither is ever taken for the other;
        what the request says of itself is ignored."""
        public = read_request(csr_pem).public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)
        return (
            self._leaf(_name(name, _PEOPLE), public, days, now)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(_PERSON.format(name))]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def _leaf(self, subject: x509.Name, public: ec.EllipticCurvePublicKey, days: float, now: datetime | None) -> x509.CertificateBuilder:
        authority = self._key.public_key()
        return (
            _builder(subject, self.certificate.subject, public, days, now or datetime.now(UTC))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign_certificates=False), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority), critical=False)
        )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def node_request(key: ec.EllipticCurvePrivateKey, hospital: str, node: str) -> str:
    """A certificate signing request (PKCS#10 PEM)."""
    request = x509.CertificateSigningRequestBuilder().subject_name(_name(node, hospital)).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.PEM).decode()


def person_request(key: ec.EllipticCurvePrivateKey, name: str) -> str:
    """A person's certificate signing request (PKCS#10 PEM)."""
    return node_request(key, _PEOPLE, name)


def read_request(csr_pem: str) -> x509.CertificateSigningRequest:
    """A request that is signed by its own P-256 key. Raises `Problem`."""
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        public = request.public_key()
        signed = request.is_signature_valid
    except (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm):
        raise Problem("security.request_invalid", reason="not a PKCS#10 request") from None
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise Problem("security.request_invalid", reason="the key is not P-256")
    if not signed:
        raise Problem("security.request_invalid", reason="its signature does not verify")
    return request


def subject_of(certificate: x509.Certificate) -> str:
    """Whom a certificate is of, for people: a hospital or a person. Empty when it names neither."""
    for urn in _urns(certificate):
        parts = urn.split(":")
        if len(parts) >= 4 and parts[:2] == ["urn", "medmesh"]:
            return parts[3]
    return ""


def _urns(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return []
    return list(names.get_values_for_type(x509.UniformResourceIdentifier))


def person_of(certificate: x509.Certificate) -> str:
    """The person a client certificate names. Raises `Problem`."""
    for urn in _urns(certificate):
        if urn.startswith(_PERSON.format("")):
            return urn.removeprefix(_PERSON.format(""))
    raise Problem("security.certificate_foreign")


def hospital_of(certificate: x509.Certificate) -> tuple[str, str]:
    """(hospital, node) a node certificate names. Raises `Problem`."""
    for urn in _urns(certificate):
        parts = urn.split(":")
        if len(parts) == 6 and parts[:3] == ["urn", "medmesh", "hospital"] and parts[4] == "node":
            return parts[3], parts[5]
    raise Problem("security.certificate_foreign")


def verify_issued(certificate: x509.Certificate, ca: x509.Certificate) -> None:
    """Raise a `Problem` unless `ca` issued `certificate` for a node, however long ago."""
    try:
        certificate.verify_directly_issued_by(ca)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        raise Problem("security.certificate_foreign") from None
    hospital_of(certificate)


def verify_node(certificate: x509.Certificate, ca: x509.Certificate, *, at: datetime, revoked: frozenset[str] = frozenset()) -> None:
    """Raise a `Problem` unless `certificate` was issued by `ca` for a node, is not revoked and is valid at `at`."""
    verify_trusted(certificate, ca, revoked)
    verify_valid(certificate, at)


def verify_trusted(certificate: x509.Certificate, ca: x509.Certificate, revoked: frozenset[str]) -> None:
    """Raise a `Problem` unless `certificate` was issued by `ca` for a node and is not revoked."""
    verify_issued(certificate, ca)
    hospital, _ = hospital_of(certificate)
    if f"{certificate.serial_number:x}" in revoked:
        raise Problem("security.certificate_revoked", hospital=hospital)


def verify_valid(certificate: x509.Certificate, at: datetime) -> None:
    """Raise a `Problem` unless `certificate` is valid at `at`."""
    if at < certificate.not_valid_before_utc:
        raise Problem("security.certificate_early", start=certificate.not_valid_before_utc.isoformat())
    if at > certificate.not_valid_after_utc:
        raise Problem("security.certificate_expired", end=certificate.not_valid_after_utc.isoformat())
