"""Federations, their participants and rounds: one vocabulary, under one name."""

from medmesh.contracts.federation.commands import *  # noqa: F403
from medmesh.contracts.federation.common import *  # noqa: F403
from medmesh.contracts.federation.facts import *  # noqa: F403
from medmesh.contracts.federation.hospitals import *  # noqa: F403
from medmesh.contracts.federation.queries import *  # noqa: F403
