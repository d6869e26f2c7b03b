"""Runs in an environment of its own, with aics-tlog and aics-witness and nothing of ours; answers in JSON.

check FOLDER VKEY QUORUM WITNESS...   everything those packages can say of a copy of our log
proof FILE LEAF VKEY WITNESS...       a `.tlog-proof`
make FOLDER COUNT                     a log of theirs
witness FOLDER VKEY                   their witness, until its input ends
submit URL WITNESS FOLDER OLD         their client at our witness
"""

from __future__ import annotations

import base64
import json
import sys
import threading
from pathlib import Path

import aics_tlog as t
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def check(folder: str, vkey: str, quorum: str, *witnesses: str) -> object:
    found = t.parse_note(Path(folder, "checkpoint").read_bytes())
    result = t.verify_checkpoint(found, t.parse_vkey(vkey), [t.parse_vkey(w) for w in witnesses], int(quorum))
    checkpoint = t.parse_checkpoint(found.text)
    reader = t.FileSystemTileReader(folder)
    try:
        t.audit_tiles(reader, checkpoint.size, checkpoint.root)
        tiles = True
    except (t.TileVerificationError, t.TileMissingError):
        tiles = False
    return {"ok": result.ok, "tiles": tiles, "size": checkpoint.size, "origin": checkpoint.origin}


def proof(file: str, leaf: str, vkey: str, *witnesses: str) -> object:
    """C2SP tlog-proof is the one format they do not read: split by its text, judged by their functions."""
    head, _, signed = Path(file).read_text().partition("\n\n")
    lines = [line for line in head.split("\n")[1:] if not line.startswith("extra ")]
    found = t.parse_note(signed)
    result = t.verify_checkpoint(found, t.parse_vkey(vkey), [t.parse_vkey(w) for w in witnesses], len(witnesses))
    checkpoint = t.parse_checkpoint(found.text)
    path = [base64.b64decode(line) for line in lines[1:]]
    index = int(lines[0].removeprefix("index "))
    return {"ok": result.ok and t.verify_leaf_inclusion(base64.b64decode(leaf), index, checkpoint.size, path, checkpoint.root)}


def make(folder: str, count: str) -> object:
    key, cosigner, origin = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate(), "aics.example/log"
    store = t.DirectoryTileStore(folder)
    writer = t.IncrementalTileWriter(store, size=0)
    entries = [b"message %d\n" % i for i in range(int(count))]
    writer.append(entries)
    root = writer.root()
    signed = t.sign_checkpoint(t.Checkpoint(origin, writer.size, root), key, origin)
    _, line = t.sign_cosignature(cosigner, "aics.example/w", 1_790_000_000, origin, writer.size, root)
    store.write_checkpoint(t.Note(text=signed.text, signatures=(*signed.signatures, line)).to_bytes())
    index = len(entries) // 2
    path = t.inclusion_proof_from_tiles(t.FileSystemTileReader(folder), index, writer.size)
    return {
        "vkey": t.format_vkey(t.vkey_from_ed25519(origin, key.public_key())),
        "witness": t.format_vkey(t.cosignature_vkey("aics.example/w", cosigner.public_key())),
        "index": index,
        "entry": base64.b64encode(entries[index]).decode(),
        "path": [base64.b64encode(p).decode() for p in path],
    }


def witness(folder: str, vkey: str) -> object:
    from aics_witness.config import LogConfig
    from aics_witness.service import Witness, make_server
    from aics_witness.store import WitnessStore

    log = t.parse_vkey(vkey)
    store = WitnessStore(Path(folder, "aics.db"), create=True)
    site = Witness("aics.example/witness", Ed25519PrivateKey.generate(), store, [LogConfig(log.name, (log,))])
    server = make_server(site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps({"url": server.url, "vkey": site.vkey_text}), flush=True)
    sys.stdin.read()
    server.shutdown()
    return None


def submit(url: str, vkey: str, folder: str, old: str) -> object:
    from aics_witness.feeder import submit_checkpoint

    signed = Path(folder, "checkpoint").read_bytes()
    size = t.parse_checkpoint(t.parse_note(signed).text).size
    path = t.consistency_proof_from_tiles(t.FileSystemTileReader(folder), int(old), size) if int(old) else []
    return {"lines": submit_checkpoint(url, signed, (int(old), path), witness_vkey=vkey, old_size=int(old))}


if __name__ == "__main__":
    answer = {"check": check, "proof": proof, "make": make, "witness": witness, "submit": submit}[sys.argv[1]](*sys.argv[2:])
    if answer is not None:
        print(json.dumps(answer))
