"""What the node's data sets are made of."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, String, Table, text

from medmesh.store.tables import node_metadata
from medmesh.store.types import Timestamp

METADATA = node_metadata()

items = Table(
    "items",
    METADATA,
    Column("item", String(64), primary_key=True),
    Column("dataset", String(63), nullable=False),
    Column("patient", String(64), nullable=False),
    Column("modality", String(80), nullable=False, comment="of images; `volume:MR`, `signal:ECG`, `text:note`, `table:<name>`"),
    Column("object", String(64), nullable=False),
    Column("label", String(80)),
    Column("held_out", Boolean, nullable=False),
    Column("ethics", String(64), nullable=False, server_default=text("''"), comment="the approval it was taken in under"),
    Column("at", Timestamp, nullable=False),
    comment="de-identified: images by their new UID's hash, rows by patient and visit, files by content; `patient` is a pseudonym",
)

unsettled = items.to_metadata(METADATA, name="unsettled")
unsettled.comment = "items of studies that more may come for: nobody uses them before they are moved to `items`"

parts = Table(
    "parts",
    METADATA,
    Column("item", String(64), primary_key=True),
    Column("volume", String(64), nullable=False, comment="the item that was made of it and others"),
    Column("dataset", String(63), nullable=False),
    Column("patient", String(64), nullable=False),
    Column("object", String(64), nullable=False),
    Column("ethics", String(64), nullable=False),
    comment="slices that a PACS sent and that a volume was made of: DICOMweb shows them, and nobody else uses them",
)

leaving = Table(
    "leaving",
    METADATA,
    Column("object", String(64), primary_key=True),
    comment="bytes that no row needs any more, written with the change that let them go, until they are erased",
)
