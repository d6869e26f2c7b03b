"""Settings of governance."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from pydantic import Field

from medmesh.security.roles import ADMINISTRATORS
from medmesh.service.settings import ServiceSettings


class Settings(ServiceSettings):
    """Beside the common ones."""

    authority: Path
    """Folder of the certification authority (`ca.key`, `ca.pem`)."""
    bootstrap_token: Path | None = None
    """File with the SHA-256 of the one-time token that creates the first security administrator."""
    seal_keys: str
    """Who keeps the key that encrypts the secrets of authenticators: a folder of key files, or `unix:` and a keeper's socket."""
    second_factor_roles: tuple[str, ...] = (*ADMINISTRATORS, "approver", "auditor")
    """Who has one of these roles cannot do anything without a second factor."""
    grace_minutes: int = Field(default=15, ge=1)
    """How long a session lasts in which something is due first: a new password, a second factor."""
    password_days: int = Field(default=90, ge=1)
    password_history: int = Field(default=5, ge=1)
    idle_days: int = Field(default=90, ge=1)
    """Accounts nobody used for so long are disabled."""
    shared_sessions: int = Field(default=4, ge=2)
    """An account with so many sessions open at once is reported as one that several people may use."""
    session_idle_minutes: int = Field(default=30, ge=1)
    session_hours: int = Field(default=12, ge=1)
    system_minutes: int = Field(default=60, ge=1)
    """How long a session of a hospital's system lasts."""
    lock_after: int = Field(default=5, ge=1)
    lock_minutes: int = Field(default=30, ge=1)
    approvals_needed: int = Field(default=1, ge=1)
    statement_age: timedelta = timedelta(minutes=10)
    """How old a decision's signature may be when it comes in."""
    approval_hours: int = Field(default=24, ge=1)
    certificate_days: int = Field(default=30, ge=1, le=90)
    """How long a person's client certificate is good."""
    node_days: int = Field(default=90, ge=1)
    """How long a node's certificate is good; it renews itself after two thirds."""
    dark_days: int = Field(default=90, ge=0)
    """How long after its end a certificate may still be renewed, with a second person's approval."""
    emergency_minutes: int = Field(default=60, ge=1, le=60)
    """How long an emergency access lasts at most."""
    emergency_review_hours: int = Field(default=24, ge=1, le=24)
    """How long after its opening it must have been reviewed."""
    enrolment_hours: int = Field(default=72, ge=1)
