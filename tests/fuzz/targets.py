"""The table: name -> texts that fit, the parser, and what it may raise.

A parser answers None, or the bytes that the same meaning is printed as: where a format is canonical these must be the bytes it was given,
so no two texts have one meaning.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from PIL import Image

from medmesh import canonical
from medmesh.archive import dicomjson
from medmesh.contracts.audit import AuditRecord
from medmesh.dicomweb import media, multipart
from medmesh.errors import Problem
from medmesh.imaging import reading
from medmesh.importing import columns, formats
from medmesh.importing.formats import wfdb
from medmesh.importing.sources import Limits
from medmesh.learning import package, protocol, weights
from medmesh.ledger import cosignature, leaf, note, policy, proof, tiles, witness
from medmesh.ledger.record import outline, read_record
from medmesh.security import assertions, authority, possession, requests, statements
from medmesh.security.authority import Authority
from medmesh.security.tokens import TrustBundle, hospital_token, verify_actor
from medmesh.serving import protocol as inference
from medmesh_audit.domain import admit, facts
from medmesh_ingestion.archive import opened_archive
from tests.logs import record as log_record
from tests.unit.importing.making import EVERY, record

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
KEY = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
WITNESS = cosignature.witness_key("renji.example/witness", KEY)
LOG = note.verifier_key("medmesh/log", KEY.public_key())


@dataclass(frozen=True)
class Target:
    """See the module."""

    seeds: Callable[[], Sequence[bytes]]
    parse: Callable[[bytes], bytes | None]
    raises: tuple[type[Exception], ...] = (Problem,)
    most_bytes: int = 4096


@cache
def checkpoint() -> str:
    text = note.Checkpoint("medmesh/log", 7, hashlib.sha256(b"root").digest()).text()
    return note.sign(text, "medmesh/log", KEY) + cosignature.cosign(text, "renji.example/witness", KEY, 1_764_000_000)


def _note(data: bytes) -> bytes | None:
    text, lines = note.split(data)
    return f"{text}\n".encode() + b"".join(f"{note.DASH} {n} {base64.b64encode(raw).decode()}\n".encode() for n, raw in lines)


def _checkpoint(data: bytes) -> bytes | None:
    text = data.decode(errors="surrogateescape")
    found = note.parse_checkpoint(text)
    return (found.text() + text[len(found.text()) :]).encode(errors="surrogateescape")  # extensions are opaque


def _tile(data: bytes) -> bytes | None:
    parts = data.decode(errors="surrogateescape").split("/")
    number, width = tiles.parse(parts)
    assert 0 <= number * 256 < 1 << 63
    return tiles.path("entries", number, width).removeprefix("tile/entries/").encode()


def _bundle(data: bytes) -> bytes | None:
    return tiles.bundle(tiles.unbundle(data))


def _cosignature(data: bytes) -> bytes | None:
    witness.cosignature_of(data, checkpoint(), WITNESS)
    return None


def _request(data: bytes) -> bytes | None:
    found = witness.parse_request(data)
    lines = "".join(base64.b64encode(p).decode() + "\n" for p in found.proof)
    return f"old {found.old}\n{lines}\n{found.note}".encode()


def _proof(data: bytes) -> bytes | None:
    found = proof.parse(data.decode(errors="surrogateescape"))
    return proof.encode(found.index, found.path, found.checkpoint, found.extra).encode(errors="surrogateescape")


def _evidence(data: bytes) -> bytes | None:
    proof.read_evidence(data)
    return None


def _policy(data: bytes) -> bytes | None:
    found = policy.parse_policy(data)
    assert found.quorum == policy.NONE or found.quorum in found.witnesses or found.quorum in found.groups
    return None


_COLUMNS = (
    b'["a.csv"]\npatient = "id"\n["a.csv".columns]\nage = { kind = "number", low = 0, high = 9 }\nsex = { kind = "code", codes = ["m"] }\n'
)


def _columns(data: bytes) -> bytes | None:
    columns.read(data)
    return None


def _canonical(data: bytes) -> bytes | None:
    return canonical.canonical(canonical.read(data))


def _json(data: bytes) -> bytes | None:
    canonical.parse(data)
    return None


def _leaf(data: bytes) -> bytes | None:
    return leaf.decode(data).encode()


def _outline(data: bytes) -> bytes | None:
    """The quick reader and the thorough one agree about what the quick one takes."""
    n, service, t, tr = outline(data)
    found = read_record(data)
    assert (int(found["n"]), found["src"]["service"], found["t"], found["tr"]) == (n, service, t, tr)
    return None


def _admit(data: bytes) -> bytes | None:
    """A record that is taken can be drawn out for the auditors: it must not stop the one writer of everybody's log."""
    try:
        document = json.loads(data)
        id_, n = str(document["id"]), int(document["n"])
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        id_, n = "x", 1
    entry = admit(AuditRecord(id=id_, n=n, body=base64.b64encode(data).decode()), "training")
    row = facts(1, entry.parts)
    assert "\0" not in json.dumps([row["who"], row["org"], row["correlation"], row["entities"]], ensure_ascii=False)
    assert len(row["id"]) <= 36 and len(row["verb"]) <= 80 and row["outcome"] in (0, 4, 8, 12)
    return None


def _csr(data: bytes) -> bytes | None:
    authority.read_request(data.decode(errors="surrogateescape"))
    return None


@cache
def ca() -> tuple[Authority, EllipticCurvePrivateKey, x509.Certificate]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o700)
        made = Authority.ensure(Path(folder))
    key = authority.new_key()
    return made, key, made.sign_node(authority.node_request(key, "renji", "node-1"), "renji", "node-1", now=NOW)


@cache
def trust() -> TrustBundle:
    return TrustBundle(platform="medmesh", services={"governance": "x"}, ca_pem=ca()[0].certificate_pem)


def _certificate(data: bytes) -> bytes | None:
    """A node's certificate, as it comes in a token of a stranger."""
    head = base64.urlsafe_b64encode(json.dumps({"alg": "ES256", "x5c": [base64.b64encode(data).decode()]}).encode()).rstrip(b"=")
    body = base64.urlsafe_b64encode(b'{"knd":"hospital","iss":"hospital:renji"}').rstrip(b"=")
    verify_actor(f"{head.decode()}.{body.decode()}.c2ln", trust(), NOW)
    return None


def _token(data: bytes) -> bytes | None:
    verify_actor(data.decode(errors="surrogateescape"), trust(), NOW)
    return None


def _claims(data: bytes) -> bytes | None:
    """What a node signs itself: any claims, with a good signature."""
    import jwt

    _, key, certificate = ca()
    chain = [base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()]
    token = jwt.PyJWS().encode(data, key, algorithm="ES256", headers={"x5c": chain, "typ": "JWT"})
    verify_actor(token, trust(), NOW)
    return None


def _assertion(data: bytes) -> bytes | None:
    text = data.decode(errors="surrogateescape")
    assertions.claimed(text)
    assertions.verify(text, KEY.public_key(), "his", NOW)
    return None


def _system_key(data: bytes) -> bytes | None:
    assertions.read_key(data.decode(errors="surrogateescape"))
    return None


def _signature(data: bytes) -> bytes | None:
    """A signed request's header. What it answers goes into a column of 64 characters."""
    nonce = requests.verify_request(ca()[2], "POST", "/v1/x", hashlib.sha256(b"").hexdigest(), data.decode("latin-1"), now=NOW)
    assert len(nonce) <= 64
    return None


def _possession(data: bytes) -> bytes | None:
    """A stranger's DPoP header. The id goes into memory for minutes."""
    found = possession.verify(data.decode("latin-1"), "GET", "h", "/v1/events", "token", now=NOW)
    assert len(found.id) <= 128
    return None


def _possession_claims(data: bytes) -> bytes | None:
    """Any claims under a good signature, by a key of the sender's own."""
    import jwt

    head = {"typ": possession.TYPE, "jwk": possession.public_jwk(KEY.public_key())}
    possession.verify(jwt.PyJWS().encode(data, KEY, algorithm="EdDSA", headers=head), "GET", "h", "/v1/events", "token", now=NOW)
    return None


def _asking(data: bytes) -> bytes | None:
    """The text of a statement, whose signature is looked at before: what is taken is spelled in one way."""
    return statements.text(statements.read(data.decode(errors="surrogateescape"), statements.Asking)).encode()


def _file(data: bytes, suffix: str = "") -> Path:
    path = _folder() / f"input{suffix}"
    path.write_bytes(data)
    return path


@cache
def _place() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="medmesh-fuzz-")


def _folder() -> Path:
    return Path(_place().name)


def _weights(data: bytes) -> bytes | None:
    """What our own reader takes, the library that reads the tensors takes too, and finds the same."""
    path = _file(data)
    found = weights.header(path)
    for name, array in weights.load(path).items():
        assert list(array.shape) == found[name]["shape"]
    return None


def _package(data: bytes) -> bytes | None:
    package.read(data)
    return None


def _archive(data: bytes) -> bytes | None:
    with tempfile.TemporaryDirectory(dir=_folder()) as target:
        file = Path(target) / "archive"
        file.write_bytes(data)
        with opened_archive(file, Limits(files=20, bytes=1 << 20, ratio=50, slack=0)) as source:
            assert len(source.names) <= 20
            assert not any(name.startswith("/") or ".." in name.split("/") for name in source.names)
            for name in source.names:
                with source.open(name) as member:
                    assert len(member.read()) <= 1 << 20
        assert [*Path(target).iterdir()] == [file]
    return None


def _dicom(data: bytes) -> bytes | None:
    reading.read(data)
    return None


def _format(data: bytes) -> bytes | None:
    _, _, made = formats.cleaned(data)
    assert formats.cleaned(made)[2] == made
    return None


def _annotations(data: bytes) -> bytes | None:
    made = wfdb.clean_annotations(data)
    assert [one[:2] for one in wfdb.read_annotations(made)] == [one[:2] for one in wfdb.read_annotations(data)]
    return None


def _multipart(data: bytes) -> bytes | None:
    """The same parts whatever pieces it comes in."""
    found = []
    for size in (len(data) or 1, 1):
        parser, parts = multipart.Parser("b"), []
        for start in range(0, len(data), size):
            for event in parser.feed(data[start : start + size]):
                match event:
                    case multipart.Headers(fields):
                        parts.append((fields, bytearray()))
                    case multipart.Data(more):
                        parts[-1][1].extend(more)
        try:
            parser.close()
        except Problem:
            parts.append(({}, bytearray(b"cut short")))
        found.append(parts)
    assert found[0] == found[1]
    return None


def _media(data: bytes) -> bytes | None:
    media.accepted(data.decode("latin-1"))
    return None


def _header(data: bytes) -> bytes | None:
    members = dicomjson.read(io.BytesIO(data)).members
    json.loads("{" + ",".join(members.values()) + "}", strict=False)
    return None


def _frame(data: bytes) -> bytes | None:
    protocol.read_frame(io.BytesIO(data))
    return None


def _infer(data: bytes) -> bytes | None:
    for tensor in inference.read_request(data).inputs:
        inference.to_numpy(tensor)
    return None


def _body() -> bytes:
    return base64.b64decode(log_record("training", 1).body)


def _zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        for name, data in files.items():
            opened.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def _tensors() -> bytes:
    path = _folder() / "seed.safetensors"
    weights.save({"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.int64)}, path)
    return path.read_bytes()


def _image() -> bytes:
    return reading.wrap(
        Image.fromarray(np.zeros((8, 8), np.uint8)),
        patient_id="P", patient_name="N", study_uid="2.25.1", series_uid="2.25.2", sop_uid="2.25.3", modality="MR", study_date="20240102",
        extra={},
    )  # fmt: skip


def jwt_claims(token: str) -> bytes:
    """The payload of a JWT."""
    part = token.split(".")[1]
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _asking_text() -> str:
    return statements.text(statements.Asking(made=NOW, action="model.release", target="r", digest="0" * 64, requester="person:li@platform"))


def _proof_text() -> str:
    return proof.encode(3, [b"\x07" * 32, b"\x08" * 32], checkpoint(), b'{"body":"e30=","leaf":"e30=","salt":"AAAA"}')


PUBLIC_KEY = b"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n"
MANIFEST = b'[package]\nname = "x"\nframework = "numpy"\nwhen = 2026-01-01\n'

TARGETS: dict[str, Target] = {
    "note": Target(lambda: [checkpoint().encode()], _note),
    "checkpoint": Target(lambda: [note.split(checkpoint())[0].encode()], _checkpoint),
    "tile-path": Target(lambda: [b"x001/x234/067", b"x001/000.p/17", b"007"], _tile, (ValueError,), 64),
    "entry-bundle": Target(lambda: [tiles.bundle([b"one", b"", b"three"])], _bundle, (ValueError,)),
    "cosignature": Target(lambda: [checkpoint().splitlines(keepends=True)[-1].encode()], _cosignature),
    "witness-request": Target(lambda: [f"old 3\n{base64.b64encode(b'h' * 32).decode()}\n\n{checkpoint()}".encode()], _request),
    "tlog-proof": Target(lambda: [_proof_text().encode()], _proof),
    "evidence": Target(lambda: [_proof_text().encode(), json.dumps({"proof": _proof_text(), "leaf": "e30="}).encode()], _evidence),
    "witness-policy": Target(
        lambda: [f"log {LOG}\nwitness renji {WITNESS} https://w.example\ngroup enough 1 renji\nquorum enough\n".encode()], _policy
    ),
    "columns": Target(lambda: [_COLUMNS], _columns),
    "canonical-json": Target(lambda: [_body(), b'{"a":[1,"\xe4\xb8\xad",true,null]}'], _canonical, (ValueError,)),
    "json": Target(lambda: [_body(), b'{"a": [1.5, "x", {"b": null}]}', b"[" * 3000], _json, (ValueError,)),
    "leaf": Target(lambda: [leaf.Leaf("2026-11-24T03", "training", 7, "renji", "0" * 64).encode()], _leaf),
    "record-outline": Target(lambda: [_body()], _outline),
    "record": Target(lambda: [_body()], _admit),
    "csr": Target(lambda: [authority.node_request(ca()[1], "renji", "node-1").encode()], _csr),
    "certificate": Target(lambda: [ca()[2].public_bytes(Encoding.DER)], _certificate),
    "token": Target(lambda: [hospital_token(ca()[1], ca()[2], now=NOW).encode()], _token),
    "claims": Target(
        lambda: [
            b'{"iss":"hospital:renji","sub":"renji","aud":"medmesh","knd":"hospital","org":"renji","jti":"1","iat":1795694400,"exp":1795695000}'
        ],
        _claims,
    ),
    "assertion": Target(lambda: [assertions.sign(KEY, "his", now=NOW).encode()], _assertion),
    "system-key": Target(lambda: [PUBLIC_KEY], _system_key),
    "request-signature": Target(lambda: [requests.sign_request(ca()[1], "POST", "/v1/x", b"", now=NOW).encode()], _signature),
    "possession": Target(lambda: [possession.prove(KEY, "GET", "https://h/v1/events", "token", now=NOW).encode()], _possession),
    "possession-claims": Target(
        lambda: [jwt_claims(possession.prove(KEY, "GET", "https://h/v1/events", "token", now=NOW))], _possession_claims
    ),
    "statement": Target(lambda: [_asking_text().encode()], _asking),
    "safetensors": Target(lambda: [_tensors()], _weights),
    "package": Target(lambda: [_zip({"medmesh.toml": MANIFEST, "model.py": b"pass"})], _package),
    "archive": Target(lambda: [_zip({"a.dcm": b"DICM" * 40, "b/c.csv": b"x,y\n1,2\n"})], _archive),
    "dicom": Target(lambda: [_image()], _dicom),
    "file-format": Target(lambda: [make() for make in EVERY.values()], _format, most_bytes=1 << 16),
    "wfdb-annotations": Target(lambda: [record()["r212.atr"]], _annotations),
    "multipart": Target(lambda: [b"--b\r\nContent-Type: application/dicom\r\n\r\none\r\n--b \r\n\r\n\r\n--b--\r\n"], _multipart),
    "media-type": Target(lambda: [b'multipart/related; type="application/dicom"; q=0.5, */*'], _media, (Problem,), 256),
    "dicom-header": Target(lambda: [_image(), _image()[132:]], _header),
    "worker-frame": Target(lambda: [b'\x00\x00\x00\x12{"call":"train"}  '], _frame, (ValueError,)),
    "inference-request": Target(
        lambda: [b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1.0,2.0]}]}'], _infer
    ),
}  # fmt: skip


@cache
def seeds(name: str) -> tuple[bytes, ...]:
    """The texts that fit, always the same ones within a run."""
    return tuple(TARGETS[name].seeds())


def check(target: Target, data: bytes) -> None:
    """Raise unless the parser takes `data` and prints it again, or refuses it as it says it does."""
    try:
        printed = target.parse(data)
    except target.raises:
        return
    assert printed is None or printed == data, f"two texts, one meaning: {data!r} and {printed!r}"
