"""Asking others: C-ECHO, C-FIND, C-MOVE and C-STORE towards a PACS, by pynetdicom (PS3.4 annexes A to C, PS3.7 §9), over TLS where the
peer says so."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pynetdicom import AE, build_context
from pynetdicom.association import Association
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from medmesh.dimse import tls
from medmesh.dimse.tls import Asking
from medmesh.errors import Problem

logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # it logs what is asked for, which may name a patient
LEVELS = ("STUDY", "SERIES", "IMAGE")
RETURNED = {
    "STUDY": (
        "StudyInstanceUID", "PatientID", "PatientName", "StudyDate", "StudyTime", "AccessionNumber", "ModalitiesInStudy",
        "StudyDescription", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances",
    ),
    "SERIES": ("StudyInstanceUID", "SeriesInstanceUID", "Modality", "SeriesNumber", "SeriesDescription", "NumberOfSeriesRelatedInstances"),
    "IMAGE": ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "InstanceNumber"),
}  # fmt: skip
"""What is asked for at each level, beside what is looked for."""
_SECONDS = 30.0
_PENDING = (0xFF00, 0xFF01)
_MOST_CONTEXTS = 128


@dataclass(frozen=True, slots=True)
class Peer:
    """Another DICOM node, and how we call ourselves towards it. With `tls` nothing is said to it in the clear; `name` is what its
    certificate must bear, where that is not `host`."""

    title: str
    host: str
    port: int
    us: str = "MEDMESH"
    tls: Asking | None = None
    name: str = ""


@dataclass(slots=True)
class Counts:
    """Of sub-operations, or of objects sent; `failures` by status or reason."""

    completed: int = 0
    failed: int = 0
    warning: int = 0
    failures: dict[str, int] = field(default_factory=dict)


def echo(peer: Peer) -> float:
    """Milliseconds a C-ECHO took. Raises `Problem` `dicom.*`."""
    with _associated(peer, [build_context(Verification)]) as association:
        began = time.perf_counter()
        _status(association.send_c_echo())
        return (time.perf_counter() - began) * 1000


def find(peer: Peer, level: str, keys: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """What the peer knows at `level` (`STUDY`, `SERIES`, `IMAGE`) that matches `keys`, DICOM keywords to values (PS3.4 §C.2.2.2, with
    `*`, `?` and ranges), as keywords to texts. Raises `Problem` `dicom.*`."""
    with _associated(peer, [build_context(StudyRootQueryRetrieveInformationModelFind)]) as association:
        for status, found in association.send_c_find(_identifier(level, keys), StudyRootQueryRetrieveInformationModelFind):
            if _status(status) in _PENDING and found is not None:
                yield {element.keyword: str(element.value if element.value is not None else "") for element in found if element.keyword}


def move(peer: Peer, destination: str, level: str, keys: Mapping[str, str], told: Callable[[Counts], None] = lambda _: None) -> Counts:
    """Have the peer send what `keys` name to the AE `destination`; `told` hears how far it is. Raises `Problem` `dicom.*`."""
    counts = Counts()
    with _associated(peer, [build_context(StudyRootQueryRetrieveInformationModelMove)], seconds=None) as association:
        asked = _identifier(level, keys, returned=False)
        for status, _ in association.send_c_move(asked, destination, StudyRootQueryRetrieveInformationModelMove):
            code = _status(status, allowed=(0xB000,))
            for name, keyword in (("completed", "Completed"), ("failed", "Failed"), ("warning", "Warning")):
                number = status.get(f"NumberOf{keyword}Suboperations")
                if number is not None:
                    setattr(counts, name, int(number))
            if code == 0xB000 and not counts.failed:
                counts.failed = 1
            told(counts)
    return counts


def move_gently(
    peer: Peer,
    destination: str,
    studies: Sequence[str],
    *,
    pause: float,
    ready: Callable[[], bool],
    told: Callable[[int, int, Counts], None] = lambda done, of, counts: None,
) -> Counts:
    """Move studies a series at a time, with `pause` seconds between them, and none while `ready` says no: a PACS works for the wards
    first. `told` hears (series done, series known of, counts). Raises `Problem` `dicom.*`."""
    total = Counts()
    series = [
        {"StudyInstanceUID": study, "SeriesInstanceUID": one["SeriesInstanceUID"]}
        for study in studies
        for one in find(peer, "SERIES", {"StudyInstanceUID": study})
        if one.get("SeriesInstanceUID")
    ]
    for done, keys in enumerate(series, start=1):
        while not ready():
            time.sleep(1)  # the pipeline is behind: nothing more is asked for
        found = move(peer, destination, "SERIES", keys)
        total.completed += found.completed
        total.failed += found.failed
        total.warning += found.warning
        told(done, len(series), total)
        if done < len(series):
            time.sleep(pause)  # what the person asked for: a PACS works for the wards first
    return total


def send(peer: Peer, paths: Sequence[Path], told: Callable[[int, int], None] = lambda done, of: None) -> Counts:
    """C-STORE of files, in one association for every 128 kinds of them. A file that is no DICOM, or that the peer refuses, is counted by
    reason, and the rest is sent. Raises `Problem` `dicom.*` when no association comes about."""
    counts, done = Counts(), 0
    for group in _groups(paths, counts):
        contexts = [build_context(sop, syntax) for sop, syntax in sorted({kind for _, kind in group})]
        with _associated(peer, contexts) as association:
            for path, _ in group:
                try:
                    status = association.send_c_store(path).get("Status")
                except Exception as error:  # no context for it, a file that does not encode, the association gone
                    if not association.is_established:
                        raise Problem("dicom.aborted", title=peer.title) from None
                    status = type(error).__name__
                if status == 0:
                    counts.completed += 1
                else:
                    if status is None:
                        raise Problem("dicom.aborted", title=peer.title)
                    reason = status if isinstance(status, str) else f"0x{status:04X}"
                    counts.failures[reason] = counts.failures.get(reason, 0) + 1
                    counts.failed += 1
                done += 1
                told(done, len(paths))
    return counts


def _groups(paths: Sequence[Path], counts: Counts) -> Iterator[list[tuple[Path, tuple[str, str]]]]:
    group: list[tuple[Path, tuple[str, str]]] = []
    kinds: set[tuple[str, str]] = set()
    for path in paths:
        try:
            meta = pydicom.dcmread(path, specific_tags=["SOPClassUID"], stop_before_pixels=True).file_meta
            kind = (str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID))
        except Exception:  # pydicom raises whatever it stumbles over
            counts.failed += 1
            counts.failures["not DICOM"] = counts.failures.get("not DICOM", 0) + 1
            continue
        if kind not in kinds and len(kinds) == _MOST_CONTEXTS:
            yield group
            group, kinds = [], set()
        kinds.add(kind)
        group.append((path, kind))
    if group:
        yield group


def _identifier(level: str, keys: Mapping[str, str], *, returned: bool = True) -> Dataset:
    asked = Dataset()
    asked.SpecificCharacterSet = "ISO_IR 192"
    asked.QueryRetrieveLevel = level
    for keyword in RETURNED[level] if returned else ():
        setattr(asked, keyword, "")
    for keyword, value in keys.items():
        if pydicom.datadict.tag_for_keyword(keyword) is None:
            raise Problem("dicom.keyword", keyword=keyword[:64])
        try:
            setattr(asked, keyword, value)
        except ValueError:
            raise Problem("dicom.keyword", keyword=keyword[:64]) from None
    return asked


def _status(status: Dataset, allowed: Sequence[int] = ()) -> int:
    code = status.get("Status")
    if code is None:
        raise Problem("dicom.no_answer")
    if code and code not in _PENDING and code not in allowed:
        raise Problem("dicom.status", status=f"0x{code:04X}", comment=str(status.get("ErrorComment", ""))[:64])
    return int(code)


@contextmanager
def _associated(peer: Peer, contexts: Sequence[Any], seconds: float | None = _SECONDS) -> Iterator[Association]:
    entity = AE(ae_title=peer.us)
    entity.connection_timeout = entity.acse_timeout = entity.network_timeout = _SECONDS
    entity.dimse_timeout = seconds
    secured = None
    if peer.tls is not None:
        peer.tls.failed = peer.tls.seen = None
        secured = (peer.tls, peer.name or peer.host)
    association = entity.associate(peer.host, peer.port, contexts=list(contexts), ae_title=peer.title, tls_args=secured)
    try:
        if not association.is_established:
            raise _refused(peer, association)
        yield association
    finally:
        if association.is_established:
            association.release()


def _refused(peer: Peer, association: Association) -> Problem:
    if association.is_rejected:
        answer = association.acceptor.primitive
        reason = f"{answer.result}/{answer.result_source}/{answer.diagnostic}" if answer is not None else "?"
        return Problem("dicom.rejected", title=peer.title, reason=reason)
    if association.acceptor.primitive is not None:
        return Problem("dicom.no_context", title=peer.title)
    if peer.tls is not None and peer.tls.failed is not None:
        return tls.said(peer.tls.failed, peer.title)
    if peer.tls is not None and peer.tls.seen is not None:  # it hung up after the handshake
        return Problem("dicom.tls_refused", title=peer.title, reason="it ended the connection")
    return Problem("dicom.unreachable", title=peer.title, host=peer.host, port=peer.port)
