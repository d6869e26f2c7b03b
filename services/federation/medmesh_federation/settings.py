"""Settings of federation."""

from __future__ import annotations

from pydantic import Field

from medmesh.service.settings import ServiceSettings


class Settings(ServiceSettings):
    """Beside the common ones."""

    tick_seconds: float = Field(default=0.5, gt=0)
    """How often deadlines and leases are looked at; an answer is acted upon at once."""
    quorum_grace_seconds: float = Field(default=3600, gt=0)
    """How long a running federation waits for enough hospitals before it fails."""
    max_void_rounds: int = Field(default=5, ge=1)
    require_rehearsal: bool = True
    """Hospitals are asked to run code of a package only after it was rehearsed on invented data."""
    code_reviewers: int = Field(default=2, ge=0)
    """How many people of the roster must have read code before hospitals are asked to run it; each hospital may ask for more or fewer."""
    states_kept: int = Field(default=4, ge=1)
    """Of how many rounds, the newest among them, what an algorithm remembered is kept: so far it can go back. Models all are."""
    running_per_initiator: int = Field(default=8, ge=1)
    running_per_hospital: int = Field(default=4, ge=1)
    """How many federations of one person, and with one hospital, run at once (paused ones, too); others wait in the queue, the oldest
    first. With several coordinators one more may begin when two look at the same moment."""
