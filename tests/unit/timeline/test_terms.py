"""Suggestions find what people mean, and change nothing; a confirmation does, until it is taken back."""

from __future__ import annotations

from pathlib import Path

import pytest

from medmesh.errors import Problem
from medmesh.timeline.terms import Vocabulary, grams, read

LIST = """code,term
I21.9,急性心肌梗死
I21.4,急性心内膜下心肌梗死
I25.2,陈旧性心肌梗死
I10,特发性(原发性)高血压
I10,Essential (primary) hypertension
E11.9,2型糖尿病不伴有并发症
E10.9,1型糖尿病不伴有并发症
J18.9,肺炎
I63.9,脑梗死
I21.9,Acute myocardial infarction
"""


@pytest.fixture
def vocabulary(tmp_path: Path) -> Vocabulary:
    (tmp_path / "icd.csv").write_text(LIST, encoding="utf-8")
    return read(tmp_path / "icd.csv", "ICD-10-CN")


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("急性心肌梗死", "I21.9"),
        ("急性心肌梗塞", "I21.9"),
        ("陈旧心梗（陈旧性心肌梗死）", "I25.2"),
        ("高血压病", "I10"),
        ("Hypertension, essential", "I10"),
        ("acute myocardal infarct", "I21.9"),
        ("２型糖尿病", "E11.9"),
        ("社区获得性肺炎", "J18.9"),
    ],
)
def test_the_best_suggestion_is_what_was_meant(vocabulary: Vocabulary, said: str, meant: str) -> None:
    found = vocabulary.suggest(said, 3)
    assert found[0].term.code == meant
    assert found[0].term.system == "ICD10CN"
    assert 1 >= found[0].score > 0.25
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert len({one.term.code for one in found}) == len(found), "a code once, whatever it is called"


def test_the_same_words_have_the_whole_score_and_strange_ones_none(vocabulary: Vocabulary) -> None:
    assert vocabulary.suggest("脑梗死")[0].score == 1.0
    assert vocabulary.suggest("脑梗死 zzz")[0].score < 0.9, "what no entry has takes from the score"
    assert vocabulary.suggest("zzz qqq") == []
    assert vocabulary.suggest("") == []


def test_scores_agree_with_another_library(vocabulary: Vocabulary) -> None:
    """TF-IDF and cosine by scikit-learn, with our n-grams and our weights: log(1 + n/df), 1 + log(tf)."""
    import numpy as np
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.metrics.pairwise import cosine_similarity

    texts = [one.term for one in vocabulary.terms]
    counted = DictVectorizer().fit_transform([grams(text) for text in texts]).toarray()
    rare = np.log(1 + len(texts) / (counted > 0).sum(axis=0))
    weighed = np.where(counted > 0, (1 + np.log(np.maximum(counted, 1))) * rare, 0)
    expected = cosine_similarity(weighed)
    for row, text in enumerate(texts):
        best: dict[str, float] = {}
        for column, term in enumerate(vocabulary.terms):
            best[term.code] = max(best.get(term.code, 0.0), expected[row, column])
        found = {one.term.code: one.score for one in vocabulary.suggest(text, 20)}
        assert found == pytest.approx({code: score for code, score in best.items() if score > 1e-9}, abs=1e-4)


@pytest.mark.parametrize("text", ["code,name\nI10,x\n", "code,term\nI10,\n", "code,term\n,x\n"])
def test_a_list_with_a_hole_is_refused_with_its_row(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(Problem) as caught:
        read(tmp_path / "x.csv", "ICD10")
    assert caught.value.code == "timeline.vocabulary"
    assert caught.value.params["row"] == (1 if "name" in text else 2)
