"""People, hospitals, enrolment and approvals: the vocabulary of governance, under one name."""

from medmesh.contracts.governance.accounts import *  # noqa: F403
from medmesh.contracts.governance.approvals import *  # noqa: F403
from medmesh.contracts.governance.certificates import *  # noqa: F403
from medmesh.contracts.governance.common import *  # noqa: F403
from medmesh.contracts.governance.emergencies import *  # noqa: F403
from medmesh.contracts.governance.hospitals import *  # noqa: F403
from medmesh.contracts.governance.keys import *  # noqa: F403
from medmesh.contracts.governance.people import *  # noqa: F403
from medmesh.contracts.governance.policies import *  # noqa: F403
from medmesh.contracts.governance.sessions import *  # noqa: F403
