"""People, hospitals, enrolment and approvals."""
