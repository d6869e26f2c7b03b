"""The hospital's own objects of one patient, in the archive, when the patient is forgotten; and the keys that what stays lies under."""

from __future__ import annotations

from medmesh.archive import states
from medmesh.archive.objects import Objects
from medmesh.archive.tables import open_archive, transaction
from medmesh.imaging.pseudonyms import pseudonym
from medmesh.security.keys import read_secret
from medmesh.store.objects.envelope import Wrapping
from medmesh_edge import tiering
from medmesh_edge.patients import HOSPITAL
from medmesh_edge.ports import Site


def objects(site: Site) -> Objects:
    """The bytes of the node's archive."""
    return Objects(site.layout.archive, Wrapping(site.keys, HOSPITAL), lambda: tiering.cold(site.settings))


def forget(site: Site, patient: str) -> int:
    """Erase what came of the patient of a pseudonym, whatever became of it, with what was made of it; how many objects came. Of an object
    that nobody could read it is not known whose it is: it stays in quarantine until it is dropped."""
    if not site.layout.archive.exists():
        return 0
    key = read_secret(site.layout.site_key).strip()
    connection = open_archive(site.layout.archive)
    try:
        wanted = "SELECT t.scope, t.uid, t.patient_id FROM studies t JOIN scopes s ON s.id = t.scope WHERE s.realm = 'original'"
        studies = [row for row in connection.execute(wanted).fetchall() if pseudonym(row[2] or f"study {row[1]}", key) == patient]
        came, gone = 0, []
        with transaction(connection):
            for where, uid, _ in studies:
                rows = connection.execute("SELECT id, sha256 FROM objects WHERE scope = ? AND study = ?", (where, uid)).fetchall()
                for number, sha256 in rows:
                    made = [row[0] for row in connection.execute("SELECT id FROM objects WHERE source = ?", (number,))]
                    states.forget(connection, [*made, number])
                    gone.append(sha256)
                came += len(rows)
        states.erase(connection, objects(site), gone)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return came
    finally:
        connection.close()


def rewrap(site: Site) -> set[int]:
    """Bring what stays under the newest of the hospital's keys; which versions are still needed."""
    if not site.layout.archive.exists():
        return set()
    kept = objects(site)
    with kept.moving():
        kept.hot.rewrap()
        return set(kept.hot.versions_in_use())
