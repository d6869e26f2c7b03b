"""Whom the node takes DICOM objects from, and for what: `dicom.toml` in its folder, the hospital's own file, read anew when it changes.

port = 11112
host = "0.0.0.0"

[[accept]]                       # deny by default: what no entry names is turned away
called = "BRAINMRI"              # the AE title that the sender calls
calling = ["CT1", "PACS"]        # the AE titles it may have
from = ["10.1.2.0/24"]           # and where it must come from: a title alone is no identity
dataset = "brain-mri"            # what it is for
ethics = "IRB-2026-017"          # the approval of `medmesh edge ethics` that covers it
deidentification = "dates=shift" # options of PS3.15 Annex E; the node's own when it is left out
until = 2027-12-31               # nobody may send after that day
# volumes = true                 # a series is one item, a volume, once its study is settled; alike for all titles of a data set
# certificate = ["ct1.hospital"] # with [tls]: a name that the sender's certificate must bear
# plain = true                   # with [tls]: may be sent in the clear all the same

[tls]                            # DICOM TLS on a port of its own; from then on what is not `plain` must come over it
port = 2762
certificate = "dicom.pem"        # of the node, with its chain; beside this file, or a whole path
key = "secrets/dicom.key"        # 0600
clients = "dicom-clients.pem"    # whom senders' certificates must come from; needed for `certificate`

[[peer]]                         # whom `medmesh edge dicom` may ask
name = "pacs"
title = "ORTHANC"
host = "10.1.1.1"
port = 104

# [peer.tls]                     # spoken to over TLS, and never in the clear; its port is often 2762
# authority = "pacs-ca.pem"      # whom its certificate must come from; or pinned = "pacs.pem", that very certificate
# name = "pacs.hospital"         # what its certificate must bear, where that is not `host`
# certificate = "dicom.pem"      # ours, where it asks for one
# key = "secrets/dicom.key"
"""

from __future__ import annotations

import tomllib
from datetime import date
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from ssl import SSLContext
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork, ValidationError, model_validator

from medmesh.contracts.message import Identifier
from medmesh.dimse import tls
from medmesh.dimse.port import CALLED_UNKNOWN, CALLING_UNKNOWN, Refused
from medmesh.dimse.tls import PORT, Asking
from medmesh.errors import Problem

Title = Annotated[str, Field(min_length=1, max_length=16, pattern=r"^[!-\[\]-~]([ -\[\]-~]*[!-\[\]-~])?$")]
"""An AE title (PS3.5 table 6.2-1): no backslash, no blanks at its ends."""
_NOBODY = Refused(1, 1, 1)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Accept(_Model):
    """One entry: who may send, for what."""

    called: Title
    calling: tuple[Title, ...] = Field(min_length=1)
    sources: tuple[IPvAnyNetwork, ...] = Field(alias="from", min_length=1)
    dataset: Identifier
    deidentification: str | None = None
    """Options of PS3.15 Annex E as words (`Options.parse`); None takes the node's own (`edge.json`)."""
    ethics: str = Field(default="", max_length=64)
    """The approval that covers it (`medmesh edge ethics`); empty only where the policy does not ask for one."""
    until: date | None = None
    certificate: tuple[str, ...] = ()
    """Names, one of which the sender's certificate must bear: a DNS name, or the common name where it has none."""
    plain: bool = False
    """Whether it may come in the clear where the node has TLS."""
    volumes: bool = False
    """Whether a series is one item of the data set, a volume."""

    def admits(self, calling: str, address: str, secured: frozenset[str] | None) -> bool:
        """Whether it names this sender; `secured` as `medmesh.dimse.port.Service.admit` has it."""
        vouched = not self.certificate or bool(frozenset(self.certificate) & (secured or frozenset()))
        return vouched and calling in self.calling and any(_within(address, one) for one in self.sources)


class Tls(_Model):
    """TLS for those who send. Files are beside `dicom.toml` unless they are whole paths."""

    port: int = Field(default=PORT, ge=0, le=65535)
    certificate: Path
    key: Path
    clients: Path | None = None

    def context(self, folder: Path) -> SSLContext:
        """Raises `Problem` (`dicom.tls`, and for the key)."""
        return tls.context(folder / self.certificate, folder / self.key, self.clients and folder / self.clients)

    def stamp(self, folder: Path) -> tuple[int, ...]:
        """Another one where a file changed."""
        paths = [folder / one for one in (self.certificate, self.key, self.clients) if one is not None]
        return tuple(one.stat().st_mtime_ns if one.exists() else 0 for one in paths)


class PeerTls(_Model):
    """TLS towards a node that we ask. Files are beside `dicom.toml` unless they are whole paths."""

    authority: Path | None = None
    """Certificates, to one of which the peer's must lead."""
    pinned: Path | None = None
    """The peer's own certificate, and no other."""
    name: str = Field(default="", max_length=253)
    certificate: Path | None = None
    key: Path | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.authority is None) == (self.pinned is None):
            raise ValueError("[peer.tls] needs authority or pinned, and not both")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("[peer.tls] needs certificate and key together")
        if self.name and self.pinned is not None:
            raise ValueError("[peer.tls] needs no name where the certificate is pinned")
        return self

    def context(self, folder: Path) -> Asking:
        """Raises `Problem` (`dicom.tls`, and for the key)."""
        own = (folder / self.certificate, folder / self.key) if self.certificate is not None and self.key is not None else None
        return tls.asking(authority=self.authority and folder / self.authority, pinned=self.pinned and folder / self.pinned, own=own)


class Peer(_Model):
    """Another DICOM node that we ask."""

    name: Identifier
    title: Title
    host: str = Field(min_length=1, max_length=253)
    port: int = Field(ge=1, le=65535)
    tls: PeerTls | None = None
    """None: it is spoken to in the clear."""


class Reception(_Model):
    """All of the file."""

    host: str = "127.0.0.1"
    port: int = Field(default=11112, ge=0, le=65535)
    title: Title = "MEDMESH"
    """What we call ourselves when we ask, and where a PACS sends what we ask for."""
    receivers: int = Field(default=2, ge=1, le=16)
    """Processes that receive."""
    cleaners: int = Field(default=2, ge=1, le=16)
    """Processes that read, de-identify, verify and check what was received."""
    settle_seconds: float = Field(default=5, gt=0, le=3600)
    """A study is told of when nothing more came for it during that time."""
    idle_seconds: float = Field(default=300, gt=0)
    reserve_mib: int = Field(default=2048, ge=0)
    """What stays free of the disk."""
    backlog: int = Field(default=200_000, ge=1)
    tls: Tls | None = None
    accept: tuple[Accept, ...] = ()
    peer: tuple[Peer, ...] = ()

    @model_validator(mode="after")
    def _vouched(self) -> Self:
        if any(one.certificate for one in self.accept) and (self.tls is None or self.tls.clients is None):
            raise ValueError("certificate needs [tls] with clients")
        # What is in a data set does not depend on the title that it was sent to.
        for one in self.accept:
            if one.volumes != self.volumes(one.dataset):
                raise ValueError(f"volumes: every [[accept]] of the data set {one.dataset} says the same")
        return self

    @property
    def in_the_clear(self) -> bool:
        """Whether anything may come without TLS."""
        return self.tls is None or any(one.plain for one in self.accept)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises `Problem` (`dicom.not_configured`, `dicom.settings`)."""
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise Problem("dicom.not_configured", folder=path.parent) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise Problem("dicom.settings", reason=error) from None
        except ValidationError as error:
            found = error.errors(include_input=False)[0]
            raise Problem("dicom.settings", reason=f"{'.'.join(map(str, found['loc']))}: {found['msg']}") from None

    def admit(self, called: str, calling: str, address: str, today: date, secured: frozenset[str] | None = None) -> Accept | Refused:
        """The entry that names this sender, or how it is turned away."""
        named = [one for one in self.accept if one.called == called]
        if not named:
            return CALLED_UNKNOWN
        open_to = [one for one in named if secured is not None or self.tls is None or one.plain]
        found = next((one for one in open_to if one.admits(calling, address, secured)), None)
        if found is None:
            return CALLING_UNKNOWN
        return found if found.until is None or today <= found.until else _NOBODY

    def entry(self, dataset: str, called: str) -> Accept | None:
        """What holds for what came for a data set, over an association to `called` or by DICOMweb."""
        named = [one for one in self.accept if one.dataset == dataset]
        return next((one for one in named if one.called == called), named[0] if named else None)

    def volumes(self, dataset: str) -> bool:
        """Whether series of a data set are volumes."""
        return any(one.volumes for one in self.accept if one.dataset == dataset)

    def named(self, peer: str) -> Peer:
        """Raises `Problem` (`dicom.peer`)."""
        found = next((one for one in self.peer if one.name == peer), None)
        if found is None:
            raise Problem("dicom.peer", name=peer[:64])
        return found


def _within(address: str, network: IPv4Network | IPv6Network) -> bool:
    found = ip_address(address.partition("%")[0])
    if found.version == 6 and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return found in network
