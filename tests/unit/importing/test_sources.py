"""A folder, a zip, a tar and a tar.gz give the same names and bytes; what is unsafe is refused as a whole."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from medmesh.errors import Problem
from medmesh.importing.port import Source
from medmesh.importing.sources import Limits, opened

FILES = {"set/a.csv": b"x,y\n1,2\n", "set/sub/b.bin": bytes(range(256)) * 300, "set/._a.csv": b"mac", "__MACOSX/set/a": b"mac"}
SEEN = {"set/a.csv": FILES["set/a.csv"], "set/sub/b.bin": FILES["set/sub/b.bin"]}


def folder(at: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (at / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (at / "root" / name).write_bytes(data)
    return at / "root"


def zipped(at: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(at / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return at / "a.zip"


def tarred(at: Path, files: Mapping[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(at / "a.tar", mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return at / "a.tar"


def gzipped(at: Path, files: Mapping[str, bytes]) -> Path:
    return tarred(at, files, "w:gz")


def read(source: Source) -> dict[str, bytes]:
    found = {}
    for name in source.names:
        with source.open(name) as file:
            found[name] = file.read()
            file.seek(1)
            assert file.read(3) == found[name][1:4]
        assert source.size(name) == len(found[name])
    return found


@pytest.mark.parametrize("made", [folder, zipped, tarred, gzipped])
def test_every_wrapping_gives_the_same_files(tmp_path: Path, made: Callable[..., Path]) -> None:
    with opened(made(tmp_path, FILES)) as source:
        assert read(source) == SEEN
        with pytest.raises(KeyError):
            source.open("other")


def test_a_file_that_only_looks_like_an_archive_is_one_file(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(zipped(tmp_path, FILES).read_bytes())
    with opened(tmp_path / "x.npz") as source:
        assert source.names == ("x.npz",)


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "C:/x", "a\\x"])
@pytest.mark.parametrize("made", [zipped, tarred, gzipped])
def test_a_name_that_leads_out_is_refused(tmp_path: Path, made: Callable[..., Path], name: str) -> None:
    with pytest.raises(Problem) as refused, opened(made(tmp_path, {"ok": b"", name: b"x"})):
        pass
    assert refused.value.code == "importing.unsafe"


def test_links_are_refused_unless_they_stay_inside(tmp_path: Path) -> None:
    root = folder(tmp_path, SEEN)
    (root / "inside.csv").symlink_to(root / "set/a.csv")
    with opened(root) as source:
        assert "inside.csv" in source.names
    (root / "out").symlink_to("/etc/hostname")
    with pytest.raises(Problem, match="leads out"), opened(root):
        pass
    (root / "out").unlink()
    os.mkfifo(root / "pipe")
    with pytest.raises(Problem, match="no plain file"), opened(root):
        pass
    with tarfile.open(tmp_path / "l.tar", "w") as archive:
        link = tarfile.TarInfo("l")
        link.type, link.linkname = tarfile.SYMTYPE, "a"
        archive.addfile(link)
    with pytest.raises(Problem, match="link"), opened(tmp_path / "l.tar"):
        pass


def test_encrypted_doubled_and_bombs_are_refused(tmp_path: Path) -> None:
    data = bytearray(zipped(tmp_path, {"a": b"x"}).read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "e.zip").write_bytes(data)
    with pytest.raises(Problem, match="encrypted"), opened(tmp_path / "e.zip"):
        pass
    with tarfile.open(tmp_path / "d.tar", "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("same"))
    with pytest.raises(Problem, match="twice"), opened(tmp_path / "d.tar"):
        pass
    bomb = {"zeros": bytes(4 << 20)}
    for made in (zipped(tmp_path, bomb), gzipped(tmp_path, bomb)):
        with opened(made):
            pass
        with pytest.raises(Problem) as refused, opened(made, Limits(slack=1 << 20)):
            pass
        assert refused.value.code == "importing.too_large"
    with pytest.raises(Problem, match="more than 1 files"), opened(folder(tmp_path, SEEN), Limits(files=1)):
        pass


@pytest.mark.parametrize("made", [zipped, tarred, gzipped])
def test_half_an_archive_is_damaged(tmp_path: Path, made: Callable[..., Path]) -> None:
    path = made(tmp_path, {"a": os.urandom(40_000)})
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(Problem) as refused, opened(path):
        pass
    assert refused.value.code == "importing.unreadable"


def test_damage_within_a_member_is_said_with_its_name(tmp_path: Path) -> None:
    path = zipped(tmp_path, {"d/a.bin": os.urandom(40_000)})
    data = bytearray(path.read_bytes())
    data[20_000] ^= 0xFF
    path.write_bytes(data)
    with opened(path) as source, pytest.raises(Problem, match=r"d/a\.bin is damaged"), source.open("d/a.bin") as file:
        file.read()
