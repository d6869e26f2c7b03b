"""The whole story on real data: hospitals that keep their data train one model together, and everybody can check it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medmesh.client.audit import at_the_door, export_log
from medmesh.client.credentials import Person
from medmesh.client.federation import create_federation, initial_weights
from medmesh.client.gateway import Gateway
from medmesh.client.people import Authenticator, sign_in
from medmesh.client.transfer import download
from medmesh.contracts.federation import FederationView
from medmesh.contracts.registry import ModelList
from medmesh.demo import source
from medmesh.demo.evidence import alter_record, dump_database, restore_record
from medmesh.demo.processes import NodeProcess, checker, medmesh
from medmesh.embedded.run import running
from medmesh.errors import Problem
from medmesh.learning import metrics, weights
from medmesh.learning.host import Worker, worker
from medmesh.learning.package import pack
from medmesh.ledger.copies import Folder
from medmesh.ledger.policy import demanding
from medmesh.ledger.proof import read_evidence, verify_evidence
from medmesh.ledger.verify import Wanted, verify_log

PASSWORD = "Demo-only-Passw0rd!"  # noqa: S105 - of accounts that live for minutes
MODEL = "mri-tumour"
PACKAGE = Path(__file__).parent / "package"
ROUNDS, STEPS, BATCH, RATE = 8, 36, 32, "0.02"
LEASE = 6
Say = Callable[[str, str], None]


@dataclass
class Story:
    """What happened, for the report."""

    folder: Path
    say: Say
    images: int = 1400
    seed: int = 7
    began: float = field(default_factory=time.monotonic)
    summary: dict[str, Any] = field(default_factory=dict)
    pace: float = 0.0
    """Seconds that the intake of all hospitals took: how fast this machine is today."""
    timeline: list[dict[str, Any]] = field(default_factory=list)
    people: dict[str, Gateway] = field(default_factory=dict)
    nodes: dict[str, NodeProcess] = field(default_factory=dict)
    view: FederationView | None = None
    proof: dict[str, Any] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        """The platform's folder."""
        return self.folder / "platform"

    def happened(self, what: str, **more: Any) -> None:
        """Put something on the timeline."""
        self.timeline.append({"seconds": round(time.monotonic() - self.began, 1), "what": what, **more})

    async def tell(self) -> dict[str, Any]:
        """Everything, in order; answers the summary."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.folder.chmod(0o711)
        try:
            slices = await self._prepare()
            await self._up()
            await self._enrol()
            await self._ingest()
            federation = await self._federate()
            await self._release(slices)
            await self._pooled(slices)
            await self._audit(federation)
        finally:
            for node in self.nodes.values():
                node.stop()
        await self._scan()
        self.summary["seconds"] = round(time.monotonic() - self.began, 1)
        return self.summary

    async def until(self, what: str, ready: Callable[[], Awaitable[Any]], seconds: float = 180) -> Any:
        """Wait for something to become true. Raises `Problem` saying what did not."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with suppress(Problem):
                if found := await ready():
                    return found
            await asyncio.sleep(0.25)
        raise Problem("demo.never", what=what, seconds=int(seconds))

    # --- 1: hospitals enrol, a second person approves ----------------------------------------------------------------

    async def _prepare(self) -> list[source.Slice]:
        self.say("images: clustering near-duplicates, wrapping as DICOM with canaries", "图像：近重复聚类，封装为带金丝雀标记的 DICOM")
        slices = await asyncio.to_thread(source.split, self.images, self.seed)
        self.canaries = await asyncio.to_thread(source.wrap_all, slices, self.folder / "pacs")
        self.canaries.write(self.folder / "canaries.txt")
        names = ",".join(source.HOSPITALS)
        seed_file = str(self.folder / "choice.json")
        _, self.choice = await checker("choose", "--hospitals", names, "--seed-file", seed_file, "--rounds", str(ROUNDS))
        return slices

    async def _up(self) -> None:
        self.say("medmesh up: servers and ten services", "medmesh up：启动服务器与十个服务")
        began = time.monotonic()
        await medmesh("up", "--data", str(self.data))
        self.happened("platform up", took=round(time.monotonic() - began, 1))
        run = running(self.data)
        assert run is not None
        self.urls, self.ca = run.urls, run.paths["ca"]
        # The key an auditor verifies with, taken before anything happened.
        self.log_key = json.loads((self.data / "trust.json").read_text())["log_key"]
        anybody = Gateway(self.urls["gateway"], ca=self.ca)
        self.people["anybody"] = anybody
        token = (self.data / "secrets" / "bootstrap.token").read_text().strip()
        await anybody.request("POST", "/v1/bootstrap", {"token": token, "name": "sun", "display_name": "孙安全", "password": PASSWORD})
        admin = self.people["sun"] = await sign_in(anybody, "sun", PASSWORD, Authenticator())
        for name, shown, role in (("li", "李研究", "researcher"), ("wu", "吴审批", "approver"), ("qian", "钱审计", "auditor")):
            body = {"name": name, "display_name": shown, "organisation": "platform", "roles": [role]}
            code = (await admin.request("POST", "/v1/users", body))["code"]
            await anybody.request("POST", "/v1/activations", {"name": name, "code": code, "password": PASSWORD})
            self.people[name] = await sign_in(anybody, name, PASSWORD, Authenticator())

    async def _approve(self, action: str, count: int = 1) -> None:
        """A second person looks at what is open and approves it."""

        async def open_ones() -> list[Any]:
            found = (await self.people["wu"].request("GET", "/v1/approvals", query={"state": "open"}))["approvals"]
            mine = [approval for approval in found if approval["action"] == action]
            return mine if len(mine) >= count else []

        for approval in await self.until(f"{count} open approvals of {action}", open_ones):
            await self.people["wu"].command("POST", f"/v1/approvals/{approval['approval']}/decision", {"approve": True})

    async def _enrol(self) -> None:
        self.say("four hospitals enrol; a second person approves each", "四家医院注册；由第二人逐一审批")
        enrolling = []
        for name in source.HOSPITALS:
            made = await self.people["sun"].request("POST", "/v1/hospitals", {"hospital": name, "display_name": name})
            folder = self.folder / "hospitals" / name
            folder.mkdir(parents=True)
            folder.chmod(0o700)
            self.nodes[name] = NodeProcess(name, folder)
            arguments = ("--folder", str(folder), "--gateway", self.urls["gateway"], "--ca", str(self.ca), "--hospital", name)
            enrolling.append(asyncio.create_task(medmesh("edge", "enrol", *arguments, "--code", made["code"], "--wait", "120")))
        await self._approve("hospital.enrol", len(source.HOSPITALS))
        await asyncio.gather(*enrolling)
        self.happened("hospitals enrolled")

    # --- 2: each edge ingests its own folder -------------------------------------------------------------------------

    async def _ingest(self) -> None:
        self.say("each node takes in its own DICOM files, de-identified", "各节点导入本院 DICOM 并去标识化")
        room = asyncio.Semaphore(2)

        async def one(node: NodeProcess) -> dict[str, Any]:
            async with room:
                pacs = str(self.folder / "pacs" / node.name)
                arguments = ("--folder", str(node.folder), pacs, "--dataset", "brain-mri", "--json")
                found: dict[str, Any] = json.loads(await medmesh("edge", "ingest", *arguments))
                await medmesh("edge", "publish", "--folder", str(node.folder), "brain-mri")
                return found

        began = time.monotonic()
        outcomes = await asyncio.gather(*(one(node) for node in self.nodes.values()))
        self.pace = time.monotonic() - began
        self.summary["hospitals"] = [
            {"name": name, "samples": outcome["stored"], "rejected": sum(outcome["rejected"].values())}
            for name, outcome in zip(self.nodes, outcomes, strict=True)
        ]
        for node in self.nodes.values():
            node.start()

        async def published() -> bool:
            catalogue = await self.people["li"].request("GET", "/v1/catalogue")
            return len(catalogue["descriptors"]) == len(self.nodes)

        await self.until("the four descriptors", published)
        self.happened("data ingested and described", samples=sum(h["samples"] for h in self.summary["hospitals"]))

    # --- 3: the federation -------------------------------------------------------------------------------------------

    async def _federate(self) -> str:
        self.say(
            "a researcher creates a federation; hospitals read the plan and approve the code", "研究者创建联邦；医院阅读方案并批准代码"
        )
        made = await create_federation(
            self.people["li"],
            PACKAGE,
            name=MODEL,
            purpose="tell MRI slices with a tumour from those without",
            initiator="person:li@platform",
            hospitals=tuple(self.nodes),
            accept_seconds=max(25, int(self.pace)),  # some four commands a hospital: on a slow machine they take longer
            rounds=ROUNDS,
            local_steps=STEPS,
            batch_size=BATCH,
            learning_rate=RATE,
            seed=self.seed,
            min_participants=3,
            round_deadline_seconds=150,
            lease_seconds=LEASE,
            baseline=True,
        )
        federation = str(made["federation"])

        async def invited(node: NodeProcess) -> bool:
            known = json.loads(await medmesh("edge", "federations", "--folder", str(node.folder)))
            return any(entry["federation"] == federation for entry in known)

        async def answer(node: NodeProcess) -> None:
            await self.until(f"the invitation at {node.name}", partial(invited, node))
            await medmesh("edge", "show", "--folder", str(node.folder), federation)
            await medmesh("edge", "approve", "--folder", str(node.folder), federation)

        await asyncio.gather(*(answer(node) for node in self.nodes.values()))
        body = {"action": "federation.start", "target": federation, "digest": made["plan_hash"]}
        await self.people["li"].command("POST", "/v1/approvals", body)
        await self._approve("federation.start")
        self.happened("federation approved")
        await self._follow(federation)
        return federation

    async def _look(self, federation: str) -> FederationView | None:
        try:
            self.view = await self.people["li"].ask(f"/v1/federations/{federation}", FederationView)
        except Problem:
            return None  # the coordinator is being killed: it answers again in a moment
        return self.view

    async def _follow(self, federation: str) -> None:
        """Watch the rounds, and break what the checker chose."""
        self.say(
            f"rounds run; the checker kills {self.choice['victim']} in round {self.choice['victim_round']} and the coordinator in "
            f"round {self.choice['coordinator_round']}",
            f"训练开始；检查器将在第 {self.choice['victim_round']} 轮终止 {self.choice['victim']}，"
            f"在第 {self.choice['coordinator_round']} 轮终止协调器",
        )
        told, killed_at, pid_before = 0, 0.0, 0
        victim = self.nodes[self.choice["victim"]]
        durations: list[float] = []
        dropped = 0  # the round it was dropped from
        rejoined = False
        end = time.monotonic() + 900
        while time.monotonic() < end:
            view = await self._look(federation)
            if view is None:
                await asyncio.sleep(0.2)
                continue
            if view.state in ("failed", "cancelled"):
                raise Problem("demo.never", what=f"the federation ended as {view.state} ({view.failure})", seconds=0)
            for done in view.rounds:
                if done.round > told and done.state == "committed":
                    told = done.round
                    durations.append((done.closed or done.opened).timestamp() - done.opened.timestamp())
                    parties = len(done.answers)
                    self.happened(f"round {told} {done.kind}", parties=parties)
                    self.say(f"  round {told} {done.kind}: {parties} hospitals", f"  第 {told} 轮 {done.kind}：{parties} 家医院")
            current = view.rounds[-1] if view.rounds else None
            if current is not None and current.state == "open":
                age = (datetime.now(UTC) - current.opened).total_seconds()
                # The first round is longer than the others: workers start. One that ended too soon for its moment passes it on.
                moment = self.choice["fraction"] * min(durations, default=3.0)
                late = current.round > self.choice["victim_round"]
                if not killed_at and (late or (current.round == self.choice["victim_round"] and age >= moment)):
                    victim.kill()
                    killed_at = time.monotonic()
                    self.happened(f"{victim.name} killed", round=current.round)
                if current.round == self.choice["coordinator_round"] and not pid_before:
                    pid_before = self._kill_coordinator()
                    self.happened("coordinator killed", round=current.round)
            state = {p.hospital: p for p in view.participants}
            if killed_at and not dropped and state[victim.name].drops:
                dropped = view.rounds[-1].round
                self.happened(f"{victim.name} left, the others go on")
            if killed_at and victim.process is None and (dropped or time.monotonic() - killed_at > 2.5 * LEASE):
                victim.start()
                self.happened(f"{victim.name} started again")
            after = [r for r in view.rounds if dropped and r.round > dropped and r.state == "committed"]
            if not rejoined and any(a.hospital == victim.name and not a.late for r in after for a in r.answers):
                rejoined = True
                self.happened(f"{victim.name} rejoined")
            if view.state == "completed":
                break
            await asyncio.sleep(0.2)
        run = running(self.data)
        assert self.view is not None
        assert run is not None
        if self.view.state != "completed":
            raise Problem("demo.never", what="the federation's end", seconds=900)
        self.happened("federation completed")
        self.summary |= {
            "rounds": sum(r.state == "committed" and r.kind == "train" for r in self.view.rounds),
            "hospital_rejoined": rejoined,
            "coordinator_resumed": bool(pid_before) and run.processes["federation"].pid != pid_before,
        }
        self._accuracies()

    def _kill_coordinator(self) -> int:
        run = running(self.data)
        assert run is not None
        pid = run.processes["federation"].pid
        os.kill(pid, 9)
        return pid

    def _accuracies(self) -> None:
        """Cross-site evaluation: every model on the union of all held-out samples, from counts alone."""
        assert self.view is not None
        union: dict[str, Any] = {}
        for entry in self.view.evaluation:
            union.setdefault(entry.name, []).append(entry.counts)
        matrices = {name: metrics.add(counts) for name, counts in union.items()}
        if missing := sorted(set(self.nodes) - set(matrices)):
            raise Problem("demo.never", what=f"a model that {', '.join(missing)} trained alone", seconds=0)
        federated = matrices["federated"]
        for hospital in self.summary["hospitals"]:
            local = matrices[hospital["name"]]
            hospital |= {
                "local_acc": metrics.balanced_accuracy(local),
                "local_interval": metrics.interval(local),
                "federated_acc": metrics.balanced_accuracy(federated),
                "federated_interval": metrics.interval(federated),
            }
        self.summary["held_out"] = int(federated.sum())

    # --- 4: register, convert, release, install, classify ------------------------------------------------------------

    async def _release(self, slices: list[source.Slice]) -> None:
        self.say("the model is registered, converted, approved and released", "模型注册、转换、审批与发布")
        li = self.people["li"]

        async def registered() -> Any:
            return next((m for m in (await li.ask("/v1/models", ModelList)).models if m.model == MODEL), None)

        version = (await self.until("the registered model", registered)).version
        path = f"/v1/models/{MODEL}/versions/{version}"
        report = await li.command("POST", f"{path}/conversion", {}, seconds=300)

        async def converted() -> bool:
            found = await registered()
            return any(artefact.format == "onnx" for artefact in found.artefacts)

        await self.until("the converted model", converted)
        found = await registered()
        self.summary["parity_max_abs_diff"] = next(a.parity_max_abs for a in found.artefacts if a.format == "onnx")
        self.parity = report
        prepared = await li.command("POST", f"{path}/release", {"hospitals": list(self.nodes)})
        body = {"action": "model.release", "target": prepared["release"], "digest": prepared["digest"]}
        await li.command("POST", "/v1/approvals", body)
        await self._approve("model.release")
        self.happened("model released")

        async def installed() -> Any:
            releases = (await registered()).releases
            done = [i for r in releases for i in r.installs if i.installed]
            return done if len(done) == len(self.nodes) else None

        self.summary["edge_installs"] = len(await self.until("four installations", installed))
        self.summary["released_model"] = f"{MODEL}:{version}"
        self.happened("installed at every hospital")
        await self._classify(slices)

    async def _classify(self, slices: list[source.Slice]) -> None:
        self.say("every node classifies its held-out images, and so does the inference service", "各节点与推理服务对留出图像分类")
        correct, truths, predicted = 0, [], []
        for node in self.nodes.values():
            for entry in json.loads(await medmesh("edge", "classify", "--folder", str(node.folder), MODEL)):
                truths.append(source.CLASSES.index(entry["truth"]))
                predicted.append(source.CLASSES.index(entry["label"]))
        counts = np.zeros((2, 2), dtype=np.int64)
        np.add.at(counts, (truths, predicted), 1)
        self.summary["edge_acc"] = metrics.balanced_accuracy(counts)
        x, y = await asyncio.to_thread(source.arrays, [s for s in slices if s.held_out][:64], 64)
        token = (await self.people["li"].request("POST", "/v1/tokens/inference"))["token"]

        async def served() -> bool:
            models = (await self.people["li"].request("GET", "/v1/served"))["models"]
            return any(m["model"] == MODEL and m["state"] in ("serving", "active") for m in models)

        await self.until("the inference service to serve it", served)
        async with Gateway(self.urls["inference"], ca=self.ca, credentials=Person(token)) as door:
            for start in range(0, len(x), 16):
                part = x[start : start + 16].astype(np.float32) / np.float32(255)
                tensor = {"name": "image", "datatype": "FP32", "shape": list(part.shape), "data": part.reshape(-1).tolist()}
                answer = await door.request("POST", f"/v2/models/{MODEL}/infer", {"inputs": [tensor]})
                logits = next(o for o in answer["outputs"] if o["name"] == "logits")
                labels = np.array(logits["data"]).reshape(logits["shape"]).argmax(axis=1)
                correct += int((labels == y[start : start + 16]).sum())
        self.summary["inference_acc"] = correct / len(x)
        self.happened("classified", images=len(truths))

    async def _pooled(self, slices: list[source.Slice]) -> None:
        """The reference nobody has in reality: all training images in one place, trained outside the platform."""
        self.say("reference: pooled training outside the platform", "参照：在平台之外的集中训练")
        package = pack(PACKAGE)
        train = [s for s in slices if not s.held_out]
        test = [s for s in slices if s.held_out]
        given = self.folder / "pooled-inputs"
        given.mkdir()
        for name, part in (("train", train), ("test", test)):
            x, y = await asyncio.to_thread(source.arrays, part, 64)
            weights.save({"x": x, "y": y}, given / name)
        initial = await initial_weights(package, self.seed, given / "w0")
        async with worker(package, self.folder / "pooled") as running_worker:
            await running_worker.call(
                "train",
                weights=running_worker.give(initial, "w0"),
                data=running_worker.give(given / "train", "train"),
                steps=ROUNDS * STEPS,
                batch_size=BATCH,
                learning_rate=float(RATE),
                seed=self.seed,
                out=str(running_worker.folder / "w1"),
            )
            models = [str(running_worker.folder / "w1"), *await self._round_models(running_worker, given)]
            counts = await running_worker.call("evaluate", data=running_worker.give(given / "test", "test"), models=models)
        self.summary["round_acc"] = [metrics.balanced_accuracy(matrix) for matrix in counts["counts"][1:]]
        self.summary["pooled_acc"] = metrics.balanced_accuracy(counts["counts"][0])
        self.summary["pooled_interval"] = metrics.interval(counts["counts"][0])
        self.happened("pooled reference trained")

    async def _round_models(self, running_worker: Worker, given: Path) -> list[str]:
        """Each round's global model, as the researcher may fetch it."""
        assert self.view is not None
        handed = []
        for done in self.view.rounds:
            if done.kind == "train" and done.state == "committed" and done.model is not None:
                path = await download(self.people["li"], done.model, given / f"round-{done.round}")
                handed.append(running_worker.give(path, f"round-{done.round}"))
        return handed

    # --- 5: the auditor ----------------------------------------------------------------------------------------------

    async def _audit(self, federation: str) -> None:
        self.say("an auditor asks who did what, and verifies offline", "审计员查询并离线验证")
        token = (await self.people["qian"].request("POST", "/v1/tokens/audit"))["token"]
        async with Gateway(self.urls["audit"], ca=self.ca, credentials=Person(token)) as door:

            async def quiet() -> bool:
                """Every emitter's records have arrived when the log stops growing."""
                before = await door.raw("GET", "/log/checkpoint")
                await asyncio.sleep(1.5)
                return before.text.split("\n")[1] == (await door.raw("GET", "/log/checkpoint")).text.split("\n")[1]

            with suppress(Problem):
                await self.until("the log to settle", quiet, 20)
            found = await door.request("GET", "/v1/events", query={"entity": f"federation:{federation}", "limit": 1000})
            who: dict[str, set[str]] = {}
            for entry in found["events"]:
                record = entry["record"]
                who.setdefault(record["sub"], set()).add(record["agents"][0]["who"] + "@" + record["src"]["service"])
            evidence = await door.request("GET", f"/v1/events/{found['events'][0]['seq']}/proof")
            log = Wanted(demanding(self.log_key))
            record, _ = verify_evidence(read_evidence(json.dumps(evidence)), log.policy)
            self.proof = {"who": {verb: sorted(names) for verb, names in who.items()}, "evidence": evidence, "record": record}
            await export_log(at_the_door(door), self.folder / "log")
            report = await asyncio.to_thread(verify_log, Folder(self.folder / "log"), log)
            code, ours = await checker("verify-log", "--log", str(self.folder / "log"), "--key", self.log_key, codes=(0, 1))
            self.summary |= {
                "audit_entries": report.size,
                "audit_verified": report.verified and code == 0 and ours["bodies"] == report.size,
            }
            self.happened("log verified offline", entries=report.size)
            # One stored record is altered behind everybody's back, by somebody who owns the database.
            altered = await alter_record(self.data, bytes.fromhex(self.choice["tamper_random"]))
            try:
                await export_log(at_the_door(door), self.folder / "log-altered")
            finally:
                await restore_record(self.data, altered)
        again = await asyncio.to_thread(verify_log, Folder(self.folder / "log-altered"), log)
        code, _ = await checker("verify-log", "--log", str(self.folder / "log-altered"), "--key", self.log_key, codes=(0, 1))
        named = [fault.seq for fault in again.faults]
        self.summary["tamper_detected"] = not again.verified and code == 1 and altered.seq in named
        self.happened("altered record found", seq=altered.seq)

    # --- 6: nothing has left -----------------------------------------------------------------------------------------

    async def _scan(self) -> None:
        self.say("scanning everything on the platform's side for every canary", "在平台侧全面扫描金丝雀标记")
        await dump_database(self.data, self.folder / "dump")
        await medmesh("down", "--data", str(self.data))
        _, found = await checker(
            "scan",
            "--canaries",
            str(self.folder / "canaries.txt"),
            "--prefix",
            self.canaries.prefix,
            "--plant",
            str(self.folder / "planted"),
            "--manifest",
            str(self.data),
            str(self.folder / "dump"),
            str(self.folder / "log"),
            codes=(0, 1),
        )
        self.summary |= {
            "canary_hits": found["canary_hits"],
            "canaries": len(self.canaries.names),
            "canaries_planted": found["planted"],
            "canaries_planted_found": found["found_planted"],
            "bytes_scanned": found["bytes"],
        }
        self.happened("scan finished", hits=found["canary_hits"])
