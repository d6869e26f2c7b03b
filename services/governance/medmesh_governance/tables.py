"""Tables of governance."""

from __future__ import annotations

from sqlalchemy import Boolean, CheckConstraint, Column, Index, Integer, LargeBinary, String, Table, Text, UniqueConstraint, text

from medmesh.security.roles import ADMINISTRATORS
from medmesh.store.tables import service_metadata
from medmesh.store.types import Counter, Json, Timestamp

METADATA = service_metadata()

ONE_ADMINISTRATOR = " + ".join(f"(roles @> '[\"{role}\"]')::int" for role in ADMINISTRATORS) + " <= 1"

users = Table(
    "users",
    METADATA,
    Column("name", String(63), primary_key=True),
    Column("kind", String(8), nullable=False, server_default=text("'person'"), comment="person, or system: one of a hospital's"),
    Column("display_name", Text, nullable=False),
    Column("organisation", String(63), nullable=False),
    Column("roles", Json, nullable=False),
    Column("password_hash", Text),
    Column("activation_hash", String(64)),
    Column("activation_expires", Timestamp),
    Column("failures", Integer, nullable=False, server_default=text("0")),
    Column("locked_until", Timestamp),
    Column("created_at", Timestamp, nullable=False),
    Column("password_at", Timestamp),
    Column("signed_in_at", Timestamp),
    Column("disabled_at", Timestamp),
    Column("ends_at", Timestamp, comment="for who is here for a while"),
    Column("factor", LargeBinary, comment="secret of the authenticator, sealed"),
    Column("factor_new", LargeBinary, comment="the one that was shown and not confirmed yet, sealed"),
    Column("factor_step", Counter, nullable=False, server_default=text("0"), comment="last step used: a code counts once"),
    Column("public_key", Text, comment="a system's, PEM"),
    Column("clearance", String(16), nullable=False, server_default=text("'internal'"), comment="up to which level"),
    Column("compartments", Json, nullable=False, server_default=text("'[]'"), comment="of which organisations; * is every one"),
    Column("emergency_withdrawn_at", Timestamp, comment="an emergency access was not justified: no other one until it is allowed"),
    # The three administrators exclude each other: held by the database too, whatever a program does.
    CheckConstraint(ONE_ADMINISTRATOR, name="one_administrator"),
)

assertions = Table(
    "assertions",
    METADATA,
    Column("system", String(63), primary_key=True),
    Column("jti", String(128), primary_key=True),
    Column("until", Timestamp, nullable=False),
    comment="signed sign-ins of systems, each good once",
)

passwords = Table(
    "passwords",
    METADATA,
    Column("name", String(63), primary_key=True),
    Column("at", Timestamp, primary_key=True),
    Column("hash", Text, nullable=False),
    comment="the last few of each person, so that none comes again",
)

sessions = Table(
    "sessions",
    METADATA,
    Column("hash", String(64), primary_key=True),
    Column("id", String(36), nullable=False, unique=True),
    Column("name", String(63), nullable=False),
    Column("must", Json, nullable=False, comment="what has to be done first; until then it does nothing else"),
    Column("strong_at", Timestamp, comment="when the second factor was last shown"),
    Column("certificate", String(64), comment="SHA-256 of the client certificate it belongs to: without it the bearer opens nothing"),
    Column("opened_at", Timestamp, nullable=False),
    Column("used_at", Timestamp, nullable=False),
    Column("expires_at", Timestamp, nullable=False),
    comment="only hashes of bearers: a copy of this table opens nothing",
)
Index("ix_sessions_name", sessions.c.name)

policy_texts = Table(
    "policy_texts",
    METADATA,
    Column("digest", String(64), primary_key=True),
    Column("text", Text, nullable=False),
    Column("at", Timestamp, nullable=False),
    comment="every text that was ever proposed as the site's policy",
)

policies = Table(
    "policies",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False),
    Column("approval", String(36), nullable=False),
    Column("at", Timestamp, nullable=False),
    comment="which of them were in force, in order; the last one is",
)

hospitals = Table(
    "hospitals",
    METADATA,
    Column("hospital", String(63), primary_key=True),
    Column("display_name", Text, nullable=False),
    Column("code_hash", String(64)),
    Column("code_expires", Timestamp),
    Column("created_at", Timestamp, nullable=False),
)

enrolments = Table(
    "enrolments",
    METADATA,
    Column("enrolment", String(36), primary_key=True),
    Column("hospital", String(63), nullable=False),
    Column("node", String(63), nullable=False),
    Column("code_hash", String(64), unique=True, comment="none when it renews a certificate"),
    Column("replaces", String(64), comment="serial number of the certificate it renews"),
    Column("csr_pem", Text, nullable=False),
    Column("csr_digest", String(64), nullable=False),
    Column("organisation_key", Text, nullable=False, comment="the hospital's own verifier key"),
    Column("approval", String(36), nullable=False),
    Column("state", String(16), nullable=False),
    Column("certificate_pem", Text),
    Column("fingerprint", String(64)),
    Column("serial", String(64)),
    Column("expires_at", Timestamp),
    Column("revoked", Boolean, nullable=False, server_default=text("false")),
    Column("created_at", Timestamp, nullable=False),
)

approvals = Table(
    "approvals",
    METADATA,
    Column("approval", String(36), primary_key=True),
    Column("action", String(63), nullable=False),
    Column("target", Text, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("requester", String(160), nullable=False),
    Column("summary", Json, nullable=False),
    Column("asking", Text, nullable=False, server_default=text("''"), comment="what who asked signed with their own key"),
    Column("state", String(16), nullable=False),
    Column("why", String(80), nullable=False, server_default=text("''"), comment="the code of what kept it from being done: failed"),
    Column("needed", Integer, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    Column("expires_at", Timestamp, nullable=False),
)
Index("ix_approvals_state", approvals.c.state)

decisions = Table(
    "decisions",
    METADATA,
    Column("approval", String(36), primary_key=True),
    Column("approver", String(160), primary_key=True),
    Column("requester", String(160), nullable=False),
    Column("approve", Boolean, nullable=False),
    Column("comment", Text, nullable=False),
    Column("token", Text, nullable=False),
    Column("statement", Text, nullable=False, comment="the decision signed with the approver's own key"),
    Column("at", Timestamp, nullable=False),
    # Maker is never checker: held by the database too, whatever a program does.
    CheckConstraint("approver <> requester", name="maker_is_not_checker"),
    comment="each approver's decision with the signed token it came with",
)

signing_keys = Table(
    "signing_keys",
    METADATA,
    Column("key", Text, primary_key=True),
    Column("name", String(160), nullable=False),
    Column("at", Timestamp, nullable=False),
    comment="public keys as people announce them; what counts is the roster",
)

emergencies = Table(
    "emergencies",
    METADATA,
    Column("emergency", String(36), primary_key=True),
    Column("person", String(63), nullable=False),
    Column("organisation", String(63), nullable=False),
    Column("reason", String(32), nullable=False),
    Column("note", Text, nullable=False),
    Column("session", String(36), nullable=False),
    Column("state", String(16), nullable=False),
    Column("opened_at", Timestamp, nullable=False),
    Column("expires_at", Timestamp, nullable=False),
    Column("ended_at", Timestamp),
    Column("due_at", Timestamp, nullable=False),
    Column("reviewer", String(63)),
    Column("comment", Text, nullable=False, server_default=text("''")),
    Column("reviewed_at", Timestamp),
    # Maker is never checker here either, and nothing is judged by nobody: held by the database too, whatever a program does.
    CheckConstraint("reviewer <> person", name="maker_is_not_reviewer"),
    CheckConstraint("(state IN ('justified', 'unjustified')) = (reviewer IS NOT NULL AND reviewed_at IS NOT NULL)", name="judged_by_one"),
    comment="emergency accesses; the notes stand here and nowhere else",
)
Index("ix_emergencies_person", emergencies.c.person)
Index("ix_emergencies_session", emergencies.c.session)
Index("uq_emergencies_open", emergencies.c.person, unique=True, postgresql_where=text("state = 'open'"))

certificates = Table(
    "certificates",
    METADATA,
    Column("fingerprint", String(64), primary_key=True),
    Column("name", String(63), nullable=False),
    Column("serial", String(64), nullable=False, unique=True),
    Column("key_digest", String(64), nullable=False, comment="of the public key: one is certified once"),
    Column("certificate_pem", Text, nullable=False),
    Column("issued_by", String(160), nullable=False),
    Column("issued_at", Timestamp, nullable=False),
    Column("expires_at", Timestamp, nullable=False),
    Column("revoked_at", Timestamp),
    UniqueConstraint("key_digest"),
    comment="client certificates of people",
)
Index("ix_certificates_name", certificates.c.name)
