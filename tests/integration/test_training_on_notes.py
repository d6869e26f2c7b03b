"""A package trains on a hospital's released notes: on features by hash, made at the node, gone with the patient; no text reaches it."""

from __future__ import annotations

import csv
from collections.abc import AsyncIterator
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from sqlalchemy import select
from tests.integration.test_forget import ALONE, prepare
from tests.integration.test_simulated_files import SIGNALS, VOLUMES, package

from medmesh.cli.federation import federation
from medmesh.contracts.federation import FederationView
from medmesh.contracts.plan import Plan
from medmesh.contracts.training import Rehearsing
from medmesh.errors import Problem
from medmesh.federated import rehearsal
from medmesh.federated.plan import explain
from medmesh.learning import isolation, weights
from medmesh.learning.host import worker
from medmesh.learning.package import pack
from medmesh.pipelines.data import TEXT, Data
from medmesh.pipelines.steps import STEPS
from medmesh_edge import forgetting, intake, policy, samples, texts
from medmesh_edge.ports import Site, site
from medmesh_edge.tables import outputs

TEXTS = """
[data]
kind = "texts"
text = "note"
size = 256
classes = ["none", "nodule"]

[data.pipeline]
name = "words-256"
steps = [{step = "ngrams", buckets = 256}]
"""
SAID = (
    ("Clear lungs, no effusion.", "Heart of normal size.", "双肺清晰，未见异常。"),
    ("A nodule in the left lung.", "Solid nodule, 8 mm.", "右肺上叶见磨玻璃结节。"),
)
DOUBT = "A nodule. Discussed with Kanary and the family."


def notes(folder: Path, count: int = 60) -> Path:
    folder.mkdir()
    dice = np.random.default_rng(4)
    with (folder / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("file", "label", "split", "patient"))
        for n in range(count):
            chosen = [SAID[n % 2][int(one)] for one in dice.permutation(3)[:2]]
            (folder / f"{n}.txt").write_text(f"Study {n} of the chest. " + " ".join(chosen))
            rows.writerow((f"{n}.txt", ("none", "nodule")[n % 2], ("train", "test")[n % 5 == 4], f"PID-{n}"))
    return folder


@pytest.fixture
async def at(private: Path) -> AsyncIterator[Site]:
    async with site(prepare(private / "node", ALONE)) as opened:
        yield opened


def expected(text: str, buckets: int) -> np.ndarray:
    """As the step says, by hand: of words that are given apart by spaces."""
    words, made = text.split(), np.zeros(buckets)
    for run in [*words, *(f"{one} {two}" for one, two in pairwise(words))]:
        drawn = sha256(run.encode()).digest()
        made[int.from_bytes(drawn[:8], "big") % buckets] += 1 if drawn[8] % 2 else -1
    return made / np.linalg.norm(made)


def test_words_are_counted_by_their_hash_and_signs_are_words() -> None:
    step = STEPS["ngrams"].model_validate({"buckets": 64})

    def of(text: str) -> np.ndarray:
        return step.apply(Data(np.frombuffer(text.encode(), np.uint8), unit=TEXT)).values

    for text, apart in (
        ("No acute infarct; 8 mm.", "no acute infarct 8 mm"),
        ("右肺8mm结节", "右 肺 8mm 结 节"),
        ("ＣＴ：Ödem", "ct ödem"),
    ):
        np.testing.assert_allclose(of(text), expected(apart, 64), atol=1e-7)
        assert of(text).dtype == np.float32
    assert not of(" ... ").any(), "no words are no error"
    with pytest.raises(Problem, match="for texts"):
        step.apply(Data(np.zeros((4, 4))))
    pinned = "f2d2f21c2a89ad2e2763a7aa1d643307736b329b8b7102c16d376a5ba2516685"
    assert step.apply(Data(np.frombuffer(b"a", np.uint8), unit=TEXT)).digest() == pinned, "another machine, another year: the same bytes"


async def test_released_notes_are_features_that_go_with_their_patient(at: Site, private: Path) -> None:
    folder = notes(private / "notes", 10)
    (folder / "doubt.txt").write_text(DOUBT)
    with (folder / "labels.csv").open("a", newline="") as file:
        csv.writer(file).writerow(("doubt.txt", "nodule", "train", "PID-99"))
    done = await intake.ingest(at, folder, "notes")
    assert (done.stored, done.held) == (10, 1)
    schema = pack(package(private / "package", TEXTS, 256)).manifest.data
    _, count = await samples.prepare(at, schema, held_out=False)
    assert count == 8, "a note that waits for a person is in no training"
    (waiting,) = await texts.waiting(at)
    await texts.release(at, waiting["number"], "li")
    path, count = await samples.prepare(at, schema, held_out=False)
    held = weights.load(path)
    assert (count, held["x"].shape, held["x"].dtype) == (9, (9, 256), np.float32)
    np.testing.assert_allclose(np.linalg.norm(held["x"], axis=1), 1, atol=1e-6)
    secret = Data(np.frombuffer(DOUBT.encode(), np.uint8), unit=TEXT)
    whole = STEPS["ngrams"].model_validate({"buckets": 256}).apply(secret).values
    assert not any(np.allclose(row, whole) for row in held["x"]), "features are of what was released"
    await forgetting.ask(at, forgetting.who(at, "PID-99"), "requested", "li")
    async with at.unit() as uow:
        assert len(await uow.all(select(outputs))) == 8
    assert not path.exists()


@pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here")
def test_a_federation_learns_from_notes(private: Path) -> None:
    source, out = package(private / "package", TEXTS, 256), private / "out"
    further = [
        "--rounds",
        "3",
        "--steps",
        "60",
        "--learning-rate",
        "0.5",
        "--hospitals",
        "3",
        "--workers",
        "1",
        "--baseline",
        "--small-cell",
        "0",
    ]
    done: Any = CliRunner().invoke(federation, ["simulate", str(source), "--data", str(notes(private / "d")), "--out", str(out), *further])
    assert done.exit_code == 0, (done.output, done.exception)
    view = FederationView.model_validate_json((private / "out.json").read_bytes())
    said = "\n".join(explain(view.plan))
    assert "256 features of the notes note" in said and "may tell which words occurred" in said and "(ngrams v1)" in said
    mine = [one.counts for one in view.evaluation if one.name == "federated"]
    right = sum(row[n] for counts in mine for n, row in enumerate(counts))
    assert right > 0.9 * sum(sum(row) for counts in mine for row in counts) > 0


def test_notes_are_in_no_everything_of_a_policy(private: Path) -> None:
    def plan_of(text: str, inputs: int) -> Plan:
        return rehearsal.plan_of(pack(package(private / str(inputs), text, inputs)), Rehearsing())

    notes_, others = plan_of(TEXTS, 256), plan_of(SIGNALS, 360)
    cohort = policy.Cohort(samples=100, patients=100)
    for allowed, refused in (('["*"]', True), ('["MR", "text:other"]', True), ('["*", "text:note"]', False)):
        (private / "policy.toml").write_text(policy.DEFAULT.replace('modalities = ["*"]', f"modalities = {allowed}"))
        found = policy.refusals(policy.read(private / "policy.toml"), notes_, cohort)
        assert ("modalities" in found) is refused, (allowed, found)
    assert "modalities" not in policy.refusals(policy.read(private / "policy.toml"), others, cohort)


@pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here")
@pytest.mark.parametrize(("text", "inputs"), [(TEXTS, 256), (SIGNALS, 360), (VOLUMES, 480)], ids=["texts", "signals", "volumes"])
async def test_whatever_a_package_is_about_is_rehearsed(private: Path, text: str, inputs: int) -> None:
    (folder := private / "rehearsal").mkdir()
    found = await rehearsal.rehearse(pack(package(private / "package", text, inputs)), Rehearsing(), worker, folder)
    assert found.passed, found.stages


def test_a_package_on_texts_without_the_step_is_refused(private: Path) -> None:
    other = TEXTS.replace('{step = "ngrams", buckets = 256}', '{step = "features"}')
    for n, wrong in enumerate((TEXTS[: TEXTS.index("[data.pipeline]")], other)):
        with pytest.raises(Problem) as caught:
            pack(package(private / f"p{n}", wrong, 256))
        assert caught.value.code == "package.malformed"
