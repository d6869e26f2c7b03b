"""Times that people hand in."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from medmesh.contracts.audit import EventFilter


@pytest.mark.parametrize("number", [12, 1.5, "12", "-1.5", "1764144000000", True])
def test_a_number_is_not_a_time(number: object) -> None:
    with pytest.raises(ValidationError, match="RFC 3339"):
        EventFilter.model_validate({"since": number})


def test_text_is() -> None:
    assert EventFilter.model_validate_json('{"since": "2026-11-26T08:00:00Z"}').since == datetime(2026, 11, 26, 8, tzinfo=UTC)
