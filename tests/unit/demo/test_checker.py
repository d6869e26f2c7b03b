"""The independent checker: what it must find, and that it refuses to speak when it could not have found it."""

from __future__ import annotations

import ast
import base64
import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from PIL import Image

from medmesh.demo import checker, checker_log, checker_plant, checker_scan, checker_unpack
from medmesh.pipelines.pipeline import declared

PREFIX = "KANARY-7f3a9c"
CANARIES = [f"{PREFIX}-{number:04d}" for number in (1, 2, 3)] + ["金丝雀七三甲", "金丝雀八四乙", "欧阳测试名", f"{PREFIX}-张三"]


def command(*arguments: str | Path) -> tuple[int, dict[str, Any], str]:
    """Exit status, answer and stderr of the checker as the demonstration runs it: isolated, by path."""
    line = [sys.executable, "-I", str(checker.__file__), *map(str, arguments)]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False, env={"PATH": os.defpath})
    return ended.returncode, json.loads(ended.stdout), ended.stderr


def test_the_checker_shares_no_code_with_what_it_checks() -> None:
    for file in Path(checker.__file__).parent.glob("checker*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [f"{'.' * node.level}{node.module}"] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names | {"cryptography"}, file


# pipeline --------------------------------------------------------------------------------------------------------------

DECLARED = {"name": "mri", "steps": [{"step": "scale", "shape": [64, 64]}, {"step": "normalise", "how": "percentile", "high": 99.5}]}


def record(verb: str, service: str, *named: str, out: int = 0) -> dict[str, Any]:
    about = [{"type": "pipeline", "id": "mri", "ver": "", "digest": digest} for digest in named]
    return {"sub": verb, "out": out, "src": {"service": service}, "entities": [{"type": "federation", "id": "f", "digest": ""}, *about]}


def pipeline_command(folder: Path, document: dict[str, Any], *records: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    bodies = [{"seq": n, "salt": "", "body": base64.b64encode(json.dumps(one).encode()).decode()} for n, one in enumerate(records)]
    (folder / "bodies.jsonl").write_text("\n".join(map(json.dumps, bodies)))
    (folder / "pipeline.json").write_text(json.dumps(document))
    return command("pipeline", "--log", folder, "--pipeline", folder / "pipeline.json", "--hospitals", "renji,xiehe")[:2]


def test_the_checker_finds_the_hash_of_a_pipeline_by_itself_and_asks_every_training_for_it(tmp_path: Path) -> None:
    stated = declared(DECLARED).stated()
    document, mine, other = stated.model_dump(mode="json"), stated.hash, "0" * 64
    whole = [record("federation.train", f"edge:{name}", mine) for name in ("renji", "xiehe")]
    whole += [record("model.register", "registry", mine), record("federation.train", "edge:renji", out=8)]
    status, answer = pipeline_command(tmp_path, document, *whole)
    assert (status, answer["ok"], answer["hash"], answer["trainings"]) == (0, True, mine, {"renji": 1, "xiehe": 1})
    cases = {
        "entry 0: federation.train names another pipeline": [record("federation.train", "edge:renji", other), *whole],
        "entry 0: federation.train names no pipeline": [record("federation.train", "edge:renji"), *whole],
        "xiehe has trained through no pipeline": [whole[0], whole[2]],
        "no model was registered with it": whole[:2],
    }
    for says, records in cases.items():
        status, answer = pipeline_command(tmp_path, document, *records)
        assert status == 1 and answer["problems"] == [says]
    for changed in ({"hash": other}, {"steps": document["steps"][:1]}, {"arithmetic": "numpy-99"}):
        status, answer = pipeline_command(tmp_path, {**document, **changed}, *whole)
        assert status == 1 and answer["problems"][0] == "the declared hash is not that of the declaration"


# choose ---------------------------------------------------------------------------------------------------------------


def test_choose_draws_within_its_bounds_and_never_the_same_round() -> None:
    drawn = [checker.choose(["a", "b", "c"], 7) for _ in range(300)]
    assert {choice["victim"] for choice in drawn} == {"a", "b", "c"}
    assert {choice["victim_round"] for choice in drawn} == {2, 3, 4, 5} == {choice["coordinator_round"] for choice in drawn}
    assert all(choice["victim_round"] != choice["coordinator_round"] for choice in drawn)
    assert all(0.2 <= choice["fraction"] <= 0.6 for choice in drawn)
    assert len({choice["tamper_random"] for choice in drawn}) == 300


def test_choose_writes_what_it_chose(tmp_path: Path) -> None:
    status, answer, _ = command("choose", "--hospitals", "a,b", "--seed-file", tmp_path / "seed.json", "--rounds", "6")
    assert status == 0
    assert json.loads((tmp_path / "seed.json").read_text()) == answer
    assert len(bytes.fromhex(answer["tamper_random"])) == 32


@pytest.mark.parametrize(("hospitals", "rounds"), [("a,a", "9"), ("a,,b", "9"), ("a,b", "4"), ("a,b", "many")])
def test_choose_refuses_what_leaves_no_choice(tmp_path: Path, hospitals: str, rounds: str) -> None:
    status = checker.main(["choose", "--hospitals", hospitals, "--seed-file", str(tmp_path / "seed"), "--rounds", rounds])
    assert status == 2
    assert not (tmp_path / "seed").exists()


def test_usage_errors_are_answers_too() -> None:
    status, answer, said = command("destroy")
    assert status == 2
    assert "unknown command" in answer["error"]
    assert "unknown command" in said


# tamper ---------------------------------------------------------------------------------------------------------------


def test_tamper_flips_one_bit_within_the_range_and_can_be_undone(tmp_path: Path) -> None:
    file, random = tmp_path / "entry", os.urandom(32)
    content = os.urandom(1000)
    file.write_bytes(content)
    arguments = ("tamper", "--file", file, "--random", random.hex(), "--offset", "100", "--length", "50")
    status, answer, _ = command(*arguments)
    changed = file.read_bytes()
    places = [place for place in range(1000) if content[place] != changed[place]]
    assert (status, places) == (0, [answer["offset"]])
    assert 100 <= places[0] < 150
    assert (content[places[0]] ^ changed[places[0]]).bit_count() == 1
    assert (answer["before"], answer["after"]) == (f"{content[places[0]]:02x}", f"{changed[places[0]]:02x}")
    assert answer["sha256_before"] == hashlib.sha256(content).hexdigest()
    assert answer["sha256_after"] == hashlib.sha256(changed).hexdigest()
    command(*arguments)
    assert file.read_bytes() == content


def test_tamper_reaches_every_byte_of_the_range(tmp_path: Path) -> None:
    file = tmp_path / "entry"
    file.write_bytes(bytes(8))
    assert {checker.tamper(file, os.urandom(32), 2, 4)["offset"] for _ in range(200)} == {2, 3, 4, 5}


@pytest.mark.parametrize(("random", "offset", "length"), [("00" * 32, 8, 3), ("00" * 32, -1, 3), ("00" * 32, 0, 0), ("00", 0, 3)])
def test_tamper_refuses_ranges_outside_the_file_and_leaves_it(tmp_path: Path, random: str, offset: int, length: int) -> None:
    file = tmp_path / "entry"
    file.write_bytes(b"0123456789")
    line = ["tamper", "--file", str(file), "--random", random, f"--offset={offset}", f"--length={length}"]
    assert checker.main(line) == 2
    assert file.read_bytes() == b"0123456789"


# scan -----------------------------------------------------------------------------------------------------------------


def new_scanner(canaries: Sequence[str] = CANARIES, prefix: str = PREFIX) -> checker_scan.Scanner:
    needles = checker_scan.needles_for(list(canaries), prefix)
    return checker_scan.Scanner(needles, checker_unpack.MAGICS, checker_unpack.open_container)


def scan(content: bytes, tmp_path: Path) -> checker_scan.Scanner:
    scanner = new_scanner()
    (tmp_path / "content").write_bytes(content)
    scanner.scan_file(tmp_path / "content")
    return scanner


def scan_command(tmp_path: Path, *paths: Path) -> tuple[int, dict[str, Any], str]:
    (tmp_path / "canaries.txt").write_text("\n".join(CANARIES) + "\n", encoding="utf-8")
    options = ("--canaries", tmp_path / "canaries.txt", "--plant", tmp_path / "plant", "--prefix", PREFIX)
    return command("scan", *options, "--manifest", *paths)


def test_scan_proves_itself_and_passes_clean_stores(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "log.jsonl").write_text('{"msg": "round finished"}\n' * 1000)
    (store / "weights").write_bytes(os.urandom(100_000) + bytes(100_000))
    (store / "packed.zip").write_bytes(checker_plant.in_zip(b"nothing of note " * 100))
    (store / "model.zst").write_bytes(b"\x28\xb5\x2f\xfd" + os.urandom(100))
    status, answer, _ = scan_command(tmp_path, store)
    assert (status, answer["canary_hits"], answer["hits"]) == (0, 0, [])
    assert (answer["files"], answer["bytes"]) == (4, sum(file.stat().st_size for file in store.iterdir()))
    assert answer["planted"] == answer["found_planted"] == len(CANARIES) * len(list((tmp_path / "plant").iterdir()))
    assert answer["unsupported"] == [{"file": str(store / "model.zst"), "what": "zstd"}]


def test_scan_tells_where_a_canary_lies_even_in_a_gzip_within_a_zip(tmp_path: Path) -> None:
    store = tmp_path / "store" / "deep"
    store.mkdir(parents=True)
    (store / "dump.sql").write_bytes(b"x" * 5000 + CANARIES[1].encode() + b"x" * 5000)
    # Amid text, so that the zip does not merely store what it cannot compress.
    inner = b"text " * 500 + gzip.compress(b"padding " * 100 + CANARIES[4].encode("gb18030")) + b"text " * 500
    (store / "backup.bin").write_bytes(b"header.." + checker_plant.in_zip(inner))
    status, answer, _ = scan_command(tmp_path, tmp_path / "store")
    assert (status, answer["canary_hits"]) == (1, 2)
    member = checker_plant.in_zip(inner).rindex(b"PK\x03\x04")  # the second of the archive
    assert answer["hits"] == [
        {"file": str(store / "backup.bin"), "offset": 8 + member, "encoding": "zip/gzip/gb18030", "canary_index": 4},
        {"file": str(store / "dump.sql"), "offset": 5000, "encoding": "utf-8", "canary_index": 1},
    ]


def test_the_planted_files_and_the_list_of_canaries_are_not_hits(tmp_path: Path) -> None:
    assert scan_command(tmp_path, tmp_path)[0] == 0
    assert scan_command(tmp_path, tmp_path)[0] == 0, "nor are those of the run before"


def test_scan_refuses_a_path_that_is_not_there(tmp_path: Path) -> None:
    status, answer, _ = scan_command(tmp_path, tmp_path / "stroe")
    assert status == 2
    assert "stroe" in answer["error"]


def prove(tmp_path: Path) -> None:
    plants = checker_plant.plants(CANARIES, checker_scan.pixel_pattern)
    checker_scan.prove(new_scanner, CANARIES, plants, tmp_path / "plant")


def broken_charset(name: str) -> Callable[[str], dict[str, bytes]]:
    right = checker_scan.charsets
    return lambda text: {charset: written for charset, written in right(text).items() if charset != name}


def without(part: str, place: int) -> Callable[..., Any]:
    """The search's needles of one kind, without the one at `place`."""
    right = getattr(checker_scan, part)
    return lambda family: [needle for number, needle in enumerate(right(family)) if number != place]


@pytest.mark.parametrize(
    ("blind", "part", "replacement"),
    [
        ("utf-16-le.file", "charsets", broken_charset("utf-16-le")),
        ("gb18030.zip", "charsets", broken_charset("gb18030")),
        ("json-escape.sqlite", "charsets", broken_charset("json-escape")),
        ("hex-upper-utf-8.file", "hex_needles", without("hex_needles", 1)),
        ("base64-2-utf-8.file", "base64_needles", without("base64_needles", 2)),
        ("pixels-rgb.file", "pixel_needles", without("pixel_needles", 3)),
        ("pixels-8.png", "pixel_pattern", lambda canary: bytes(1024)),
    ],
)
def test_a_scanner_made_blind_to_an_encoding_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blind: str, part: str, replacement: Callable[..., Any]
) -> None:
    plants = list(checker_plant.plants(CANARIES, checker_scan.pixel_pattern))
    monkeypatch.setattr(checker_scan, part, replacement)
    with pytest.raises(ValueError, match=f"scanner blind to .*{blind}") as refused:
        checker_scan.prove(new_scanner, CANARIES, plants, tmp_path)
    assert "xz" in str(refused.value), "an encoding is missed in every container"


@pytest.mark.parametrize("kind", list(checker_unpack.MAGICS))
def test_a_scanner_made_blind_to_a_container_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.delitem(checker_unpack.MAGICS, kind)
    with pytest.raises(ValueError, match=f"scanner blind to .*utf-8[.]([a-z]+-of-)?{'tar-gz' if kind == 'gzip' else kind}"):
        prove(tmp_path)


def test_a_blind_scanner_gives_no_verdict(tmp_path: Path) -> None:
    """The command itself, with one encoder of the search broken in a copy of the files."""
    folder = Path(checker.__file__).parent
    for file in folder.glob("checker*.py"):
        text = file.read_text(encoding="utf-8").replace('("hex-upper", family.stem.hex().upper())', '("hex-upper", "never")')
        (tmp_path / file.name).write_text(text, encoding="utf-8")
    (tmp_path / "canaries.txt").write_text(CANARIES[0])
    options = ["--canaries", tmp_path / "canaries.txt", "--plant", tmp_path / "plant", "--manifest", tmp_path / "checker.py"]
    line = [sys.executable, "-I", str(tmp_path / "checker.py"), "scan", *map(str, options)]
    ended = subprocess.run(line, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "scanner blind to hex-upper-utf-8.file (1 of 1)" in json.loads(ended.stdout)["error"]


@pytest.mark.parametrize("start", [0, 1, (1 << 20) - 7, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
@pytest.mark.parametrize("write", [str.encode, lambda text: base64.b64encode(b".." + text.encode()), lambda text: text.encode("utf-16-le")])
def test_canaries_across_the_borders_of_blocks_are_found_once(tmp_path: Path, start: int, write: Callable[[str], bytes]) -> None:
    scanner = scan(b"\0" * start + write(CANARIES[2]) + b"\0" * 50, tmp_path)
    assert (scanner.seen, scanner.total) == ({2}, 1)


def test_a_canary_cut_short_is_a_leak_of_an_unknown_one(tmp_path: Path) -> None:
    scanner = scan(PREFIX.encode() + b"-00", tmp_path)
    assert [hit["canary_index"] for hit in scanner.hits] == [-1]


def test_part_of_a_name_is_not_a_hit(tmp_path: Path) -> None:
    assert scan("金丝雀七三 金丝雀 欧阳测试 KANARY-".encode(), tmp_path).total == 0


@pytest.mark.parametrize("longer_first", [True, False])
def test_a_canary_that_begins_another_is_not_taken_for_it(tmp_path: Path, longer_first: bool) -> None:
    canaries = [f"{PREFIX}-12", f"{PREFIX}-1"] if longer_first else [f"{PREFIX}-1", f"{PREFIX}-12"]
    scanner = new_scanner(canaries)
    (tmp_path / "content").write_text(f"{PREFIX}-12")
    scanner.scan_file(tmp_path / "content")
    assert scanner.seen == {canaries.index(f"{PREFIX}-12")}


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, lzma.compress, partial(bz2.compress, compresslevel=1)])
def test_broken_off_and_damaged_streams_are_searched_up_to_the_damage(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    content = CANARIES[0].encode() + os.urandom(300_000)
    packed = pack(content)
    assert scan(packed[:-20], tmp_path).seen == {0}, "cut"
    assert scan(packed[:-3] + bytes([packed[-3] ^ 1]) + packed[-2:], tmp_path).seen == {0}, "its checksum is wrong"


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_the_picture_of_a_canary_is_found_in_images_of_another_writer(tmp_path: Path, mode: str) -> None:
    image = Image.frombytes("L", (200, 150), os.urandom(30_000)).resize((400, 300))
    image.paste(Image.frombytes("L", (32, 32), checker_scan.pixel_pattern(CANARIES[5])), (101, 57))
    stream = io.BytesIO()
    (image.convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)).save(stream, "png")
    scanner = scan(stream.getvalue(), tmp_path)
    assert (scanner.seen, scanner.total) == ({5}, 32)
    assert {hit["encoding"].split("/")[0] for hit in scanner.hits} == {"png"}


def test_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a", CANARIES[0])
    assert scan(stream.getvalue(), tmp_path).unsupported[0]["what"] == "zip compression method 14"
    nested = b"nothing of note"
    for _ in range(checker_scan.DEPTH + 1):
        nested = gzip.compress(nested)
    assert "deeper than 6 containers" in scan(nested, tmp_path).unsupported[0]["what"]


def test_streams_larger_than_a_piece_are_searched_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker_unpack, "PIECE", 1 << 16)
    content = b"".join(os.urandom(40_000) + canary.encode() for canary in CANARIES)
    scanner = scan(gzip.compress(content), tmp_path)
    assert scanner.seen == set(range(len(CANARIES)))
    assert "in pieces" in scanner.unsupported[0]["what"]


@pytest.mark.parametrize(
    ("canaries", "prefix", "reason"),
    [([], "", "at least one"), (["same name", "same name"], "", "different"), (["ab"], "", "too short"), (["canary-1"], "canary", "10")],
)
def test_canaries_that_prove_nothing_are_refused(canaries: list[str], prefix: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        checker_scan.needles_for(canaries, prefix)


# verify-log -----------------------------------------------------------------------------------------------------------


def naive_root(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962 section 2.1, by its own recursion."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\1" + naive_root(leaves[:split]) + naive_root(leaves[split:])).digest()


class Log:
    """A log copy, written tile by tile from the naive recursion."""

    def __init__(self, folder: Path, size: int, name: str = "audit.example") -> None:
        self.folder, self.size, self.name, self.secret = folder, size, name, Ed25519PrivateKey.generate()
        self.records = [(os.urandom(16), f"body {number}".encode()) for number in range(size)]
        self.leaves = [
            json.dumps({"commit": hashlib.sha256(salt + body).hexdigest(), "seq": seq}, sort_keys=True, separators=(",", ":")).encode()
            for seq, (salt, body) in enumerate(self.records)
        ]
        for start in range(0, size, 256):
            group = self.leaves[start : start + 256]
            self.write("entries", start // 256, len(group), b"".join(len(leaf).to_bytes(2, "big") + leaf for leaf in group))
        for level, span in ((0, 1), (1, 256)):
            hashes = [naive_root(self.leaves[start : start + span]) for start in range(0, size - size % span, span)]
            for start in range(0, len(hashes), 256):
                self.write(str(level), start // 256, len(hashes[start : start + 256]), b"".join(hashes[start : start + 256]))
        (folder / "bodies").mkdir(parents=True)
        for number, (salt, body) in enumerate(self.records):
            record = {"salt": base64.b64encode(salt).decode(), "body": base64.b64encode(body).decode()}
            (folder / "bodies" / f"{number}.json").write_text(json.dumps(record))
        self.sign(f"{name}\n{size}\n{base64.b64encode(naive_root(self.leaves)).decode()}\n")

    def path(self, level: str, number: int, width: int) -> Path:
        return self.folder / "tile" / level / (f"{number:03d}" if width == 256 else f"{number:03d}.p/{width}")

    def write(self, level: str, number: int, width: int, content: bytes) -> None:
        self.path(level, number, width).parent.mkdir(parents=True, exist_ok=True)
        self.path(level, number, width).write_bytes(content)

    @property
    def key(self) -> str:
        material = b"\x01" + self.secret.public_key().public_bytes_raw()
        identifier = hashlib.sha256(self.name.encode() + b"\n" + material).digest()[:4]
        return f"{self.name}+{identifier.hex()}+{base64.b64encode(material).decode()}"

    def sign(self, text: str) -> None:
        identifier = bytes.fromhex(self.key.split("+")[1])
        ours = base64.b64encode(identifier + self.secret.sign(text.encode())).decode()
        witness = base64.b64encode(os.urandom(76)).decode()
        (self.folder / "checkpoint").write_text(f"{text}\n— witness.example {witness}\n— {self.name} {ours}\n", encoding="utf-8")


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log", 600)


def verify(log: Log) -> dict[str, Any]:
    return checker_log.verify(log.folder, log.key)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 255, 256, 257, 513])
def test_roots_of_every_shape_agree_with_the_naive_recursion(tmp_path: Path, size: int) -> None:
    answer = verify(Log(tmp_path, size))
    assert answer["ok"], answer
    assert (answer["size"], answer["entries"], answer["bodies"], answer["first_bad"]) == (size, size, size, None)


def test_root_of_the_published_vector() -> None:
    """The eight leaves of the Certificate Transparency reference tests."""
    leaves = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    root = checker_log.merkle_root(checker_log.leaf_hash(bytes.fromhex(leaf)) for leaf in leaves)
    assert root.hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


def test_paths_of_tiles() -> None:
    assert checker_log.tile_path("0", 1234067, 256) == "tile/0/x001/x234/067"
    assert checker_log.tile_path("entries", 273, 112) == "tile/entries/273.p/112"
    assert checker_log.tile_path("1", 1000, 3) == "tile/1/x001/000.p/3"


def test_verify_log_command_passes_a_true_log_and_finds_a_tampered_byte(log: Log) -> None:
    arguments = ("verify-log", "--log", log.folder, "--key", log.key)
    status, answer, said = command(*arguments)
    assert (status, answer["ok"], answer["tiles"], said) == (0, True, 4, "")
    bundle = log.path("entries", 1, 256)
    offset = sum(2 + len(leaf) for leaf in log.leaves[256:300])
    place = ("--offset", str(offset), "--length", str(2 + len(log.leaves[300])))
    assert command("tamper", "--file", bundle, "--random", os.urandom(32).hex(), *place)[0] == 0
    status, answer, _ = command(*arguments)
    assert (status, answer["ok"], answer["first_bad"]) == (1, False, 300)


def test_every_byte_of_an_entry_its_hash_and_its_body_matters(log: Log) -> None:
    start = sum(2 + len(leaf) for leaf in log.leaves[512:590])
    places = [(log.path("entries", 2, 88), start + step) for step in range(2 + len(log.leaves[590]))]
    places += [(log.path("0", 2, 88), 78 * 32 + step) for step in (0, 31)]
    body = log.folder / "bodies" / "590.json"
    for file, place in [*places[::7], *places[:2], (body, body.read_text().index('"body": "') + 9)]:
        content = file.read_bytes()
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert verify(log)["first_bad"] == 590, (file, place)
        file.write_bytes(content)
    assert verify(log)["ok"]


def test_an_entry_rewritten_with_its_hashes_still_fails_at_the_root(log: Log) -> None:
    """Whoever can rewrite every file but cannot sign."""
    other = Log(log.folder.parent / "other", 600)
    for file in other.folder.rglob("*"):
        if file.is_file() and file.name != "checkpoint":
            (log.folder / file.relative_to(other.folder)).write_bytes(file.read_bytes())
    answer = verify(log)
    assert not answer["ok"]
    assert answer["problems"] == ["the root of the entries is not the root that was signed"]


@pytest.mark.parametrize(("level", "number", "width", "first_bad"), [("1", 0, 2, 0), ("0", 1, 256, 256), ("entries", 2, 88, 512)])
@pytest.mark.parametrize("damage", ["missing", "longer", "cut"])
def test_missing_and_misshapen_tiles_are_bad(log: Log, level: str, number: int, width: int, first_bad: int, damage: str) -> None:
    file = log.path(level, number, width)
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes() + b"x" if damage == "longer" else file.read_bytes()[:-1])
    answer = verify(log)
    assert not answer["ok"]
    if level != "entries" or damage == "missing":
        assert answer["first_bad"] == first_bad


def test_a_wrong_hash_in_an_upper_tile_is_bad(log: Log) -> None:
    file = log.path("1", 0, 2)
    content = bytearray(file.read_bytes())
    content[40] ^= 1
    file.write_bytes(content)
    assert (verify(log)["ok"], verify(log)["first_bad"]) == (False, 256)


def test_a_copy_taken_while_the_log_grew_is_good(tmp_path: Path) -> None:
    """The partial tiles of the checkpoint may have given way to full ones."""
    log = Log(tmp_path, 256)
    log.sign(f"{log.name}\n200\n{base64.b64encode(naive_root(log.leaves[:200])).decode()}\n")
    answer = verify(log)
    assert (answer["ok"], answer["size"], answer["bodies"]) == (True, 200, 200), answer


def test_a_body_may_be_absent_but_not_another(log: Log) -> None:
    bodies = log.folder / "bodies"
    (bodies / "3.json").unlink()
    assert (verify(log)["ok"], verify(log)["bodies"]) == (True, 599)
    (bodies / "4.json").write_bytes((bodies / "5.json").read_bytes())
    assert verify(log)["first_bad"] == 4


@pytest.mark.parametrize(
    "leaf", [b'{"commit":"%s","commit":"%s"}', b'{"seq":1,"commit":"%s"}', b'{"commit": "%s"}', b'{"other":"%s"}', b"[]", b"\xff"]
)
def test_headers_that_can_be_read_in_two_ways_are_bad(leaf: bytes) -> None:
    commit = hashlib.sha256(b"saltbody").hexdigest().encode()
    stored = json.dumps({"salt": base64.b64encode(b"salt").decode(), "body": base64.b64encode(b"body").decode()}).encode()
    checker_log.check_body(b'{"commit":"%s"}' % commit, stored)
    with pytest.raises(checker_log.Bad):
        checker_log.check_body(leaf.replace(b"%s", commit), stored)


def test_only_the_key_that_was_given_counts(log: Log) -> None:
    note = (log.folder / "checkpoint").read_text(encoding="utf-8")
    for wrong in (note.replace("\n600\n", "\n599\n"), note[: note.index("— audit")], note.replace("\n\n", "\n"), ""):
        (log.folder / "checkpoint").write_text(wrong, encoding="utf-8")
        answer = verify(log)
        assert not answer["ok"]
        assert answer["problems"][0].startswith("checkpoint: ")
    (log.folder / "checkpoint").write_text(note, encoding="utf-8")
    log.secret = Ed25519PrivateKey.generate()
    assert "not signed by" in verify(log)["problems"][0]


def test_a_checkpoint_of_another_log_is_bad(log: Log) -> None:
    log.sign(f"other.example\n600\n{base64.b64encode(naive_root(log.leaves)).decode()}\n")
    assert "other.example" in verify(log)["problems"][0]


def test_an_unusable_key_is_no_verdict(log: Log) -> None:
    name, identifier, material = log.key.split("+", 2)
    for key in ("nonsense", f"{name}+00000000+{material}", f"other+{identifier}+{material}"):
        assert checker.main(["verify-log", "--log", str(log.folder), "--key", key]) == 2
