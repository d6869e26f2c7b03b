"""Names, dates, numbers, addresses and hospitals in clinical text: what must be found, and what must not be taken for it."""

from __future__ import annotations

import pytest

from medmesh.errors import Problem
from medmesh.text import Kind, Review, as_text, doubts, find, propose, redact, sift, terms_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("姓名：王丽 女 45岁 住院号：ZY123456", "姓名：[NAME] 女 45岁 住院号：[RECORD]"),
        ("患者李小明，男，62岁，因胸痛3天入院", "患者[NAME]，男，62岁，因胸痛3天入院"),
        ("欧阳修主任查房，张医生记录", "[NAME]主任查房，[NAME]医生记录"),
        ("主任医师张伟报告，审核医师：刘芳", "主任医师[NAME]报告，审核医师：[NAME]"),
        ("王某某，女，30岁", "[NAME]，女，30岁"),
        ("电话：010-65296114，手机13800138000", "电话：[PHONE]，手机[PHONE]"),
        ("身份证11010519491231002X", "身份证[IDENTITY]"),
        ("2024年3月5日于北京协和医院就诊", "[DATE]于[HOSPITAL]就诊"),
        ("住址：北京市朝阳区建国路88号3单元502室", "住址：[ADDRESS]"),
        ("微信号：wx_ab12cd，邮箱li.na@example.cn", "微信号：[CONTACT]，邮箱[CONTACT]"),
        ("患者，93岁", "患者，[AGE]"),
        ("Patient name: John Smith, MRN: 123-456", "Patient name: [NAME], MRN: [RECORD]"),
        ("Seen by Dr. Adams on 3 Mar 2024 at St. Mary's Hospital", "Seen by Dr. [NAME] on [DATE] at [HOSPITAL]"),
        ("Lives at 12 Old Mill Road, tel (555) 123-4567", "Lives at [ADDRESS], tel [PHONE]"),
        ("Reported by: Jane A. Doe 03/05/2024", "Reported by: [NAME] [DATE]"),
        ("SSN 123-45-6789, SMITH^JOHN is Smith^John", "SSN [IDENTITY], [NAME] is [NAME]"),
    ],
)
def test_what_names_somebody_is_found(text: str, expected: str) -> None:
    assert redact(text, find(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "患者高血压10年，否认糖尿病史，血压135/85mmHg，白细胞9.8",
        "右肺上叶见磨玻璃结节，大小约8.5mm×6.0mm，边界清，黄疸消退",
        "MRI of the brain shows no acute infarct. T2 hyperintensity 3.5 x 2.1 cm, ADC 0.8.",
        "Patient presents with chest pain for 3 days. BP 120/80, HR 72.",
        "左心室射血分数60%，EF正常，L4/5椎间盘突出",
    ],
)
def test_findings_are_left_alone(text: str) -> None:
    assert find(text) == []


@pytest.mark.parametrize(
    ("text", "doubted"),
    [
        ("复诊，王丽，情况稳定", ["王丽"]),
        ("心脏超声未见异常。何莉", ["何莉"]),
        ("Discussed with Wang and the family", ["Wang"]),
        ("Li Na came alone", ["Li Na"]),
        ("姓名：王丽 女 45岁", []),
        ("Seen by Dr. Adams today", []),
        ("患者高血压10年，否认糖尿病史，白细胞9.8，黄疸", []),
        ("MRI of the brain: no Crohn disease, left ventricle normal. Clinical History: cough", []),
    ],
)
def test_what_may_be_a_name_is_doubted_and_what_is_sure_is_not(text: str, doubted: list[str]) -> None:
    assert [text[one.start : one.end] for one in doubts(text, find(text))] == doubted
    sifted = sift(text)
    assert [text[one.span.start : one.span.end] for n, one in enumerate(sifted.review.judged) if n in sifted.doubted] == doubted
    assert doubts(sifted.text.replace("[NAME]", "x")) == []


def test_notes_are_told_from_other_files() -> None:
    assert as_text("右肺结节\n".encode("gb18030")) == "右肺结节\n"
    for other in (b"", b"  \n", b"\0\1\2", b'{"a": 1}', b"<xml/>", b"MSH|^~", b"%PDF-1.4", b"\xff\xfe\x01"):
        assert as_text(other) is None


def test_known_names_are_found_wherever_they_stand() -> None:
    text = "复查：启 明 同志与zhang qiming为同一人；编号P-7781-22"
    assert redact(text, find(text, ["Zhang^Qiming=张^启明", "P-7781-22"])) == "复查：[NAME] 同志与[NAME] [NAME]为同一人；编号[RECORD]"


def test_of_a_description_only_the_words_of_the_field_stay() -> None:
    assert terms_of("胸部平扫 王丽 T2W_FLAIR 13800138000") == "胸部平扫 T2W FLAIR"
    assert terms_of("Zhang San") == terms_of("张三") == terms_of("2024 12") == ""


def test_a_review_is_a_value_without_the_text() -> None:
    text = "患者李小明，男，62岁，于2024年3月5日查Dr. Adams法"
    review = propose(text)
    assert [text[one.span.start : one.span.end] for one in review.judged] == ["李小明", "2024年3月5日", "Adams"] and review.open == [
        0,
        1,
        2,
    ]
    judged = review.accept([0, 1], "reviewer").reject([2], "reviewer").add(text.index("62"), text.index("岁"), Kind.AGE, "reviewer")
    assert judged.open == []
    assert judged.apply(text) == "患者[NAME]，男，[AGE]岁，于[DATE]查Dr. Adams法"
    assert review.apply(text) == "患者[NAME]，男，62岁，于[DATE]查Dr. [NAME]法"  # nobody has looked: all of it goes
    document = judged.document()
    assert "李小明" not in document and "Adams" not in document
    assert Review.read(document) == judged
    with pytest.raises(Problem, match="another text"):
        judged.apply(text + ".")
    for broken in ("{}", "[", '{"sha256": "", "spans": [[0, 1, "NAME", "x", "sure", ""]]}'):
        with pytest.raises(Problem):
            Review.read(broken)
