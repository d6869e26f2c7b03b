"""Media types as clients write them, and which one is given."""

from __future__ import annotations

import pytest

from medmesh.dicomweb.media import DICOM, JSON, OCTETS, accepted, choose, parse
from medmesh.errors import Problem


def test_parameters_quoted_and_not() -> None:
    found = parse('Multipart/Related; type="application/dicom" ;boundary=ab--1; start="<a,b\\"c>"')
    assert (found.name, found.inner) == ("multipart/related", DICOM)
    assert found.parameters == {"type": "application/dicom", "boundary": "ab--1", "start": '<a,b"c>'}


def test_the_most_wanted_of_what_there_is() -> None:
    wanted = accepted('application/json;q=0.5, multipart/related; type="application/dicom"; transfer-syntax=*; q=0.9, text/html;q=0')
    assert [one.inner for one in wanted] == [DICOM, "application/json"]
    assert choose(wanted, ["application/json", DICOM]) == (wanted[0], DICOM)
    assert wanted[0].syntax == "*"
    assert choose(accepted(None), [JSON])[1] == JSON
    assert choose(accepted('multipart/related; type="image/*", */*;q=0.1'), [OCTETS, "image/jpeg"])[1] == "image/jpeg"
    with pytest.raises(Problem) as caught:
        choose(accepted("text/html, application/dicom+xml"), [JSON])
    assert caught.value.status == 406


@pytest.mark.parametrize("text", ["", "dicom", "a/b; c", "a/b,", 'a/b; c="', "a/b; c=1; c=2", "a/b x", "a/b;q=x", "a/b; " + "x" * 5000])
def test_what_is_none(text: str) -> None:
    with pytest.raises(Problem) as caught:
        accepted(text) if text else parse(text)
    assert caught.value.code == "dicomweb.media_type"
