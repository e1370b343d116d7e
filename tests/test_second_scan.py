"""A second scanner sees every session before it teaches or is shown, and can reach nobody."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_llama
from support_engine import TOPICS, Bench, TopicEvaluator, TopicTrainer, sessions

from leaves.bundle import Exposure
from leaves.model import Instant
from leaves.ports import Report, Trained, TrainJob, silent
from leaves.store import ForestStore, Role
from leaves.training.canaries import Exposures
from leaves.training.chassis import open_chassis
from node import screening
from node.app import App
from node.capture import CURRENT_CONSENT_VERSION, Scope, TrainingRecord, second_scan
from node.capture.second_scan import UNSCANNABLE, SecondScan, SecondScanError
from node.examining import Gate
from node.home import groove_cache, private_dir
from node.screening import FILE, left_out, screened, withheld
from node.tables import Deployed
from node.told import Tell, Told

GITHUB = "betterleaks.github-pat"


def token(seed: int = 0) -> str:
    rng = random.Random(seed)
    return "ghp_" + "".join(rng.choice(string.ascii_letters + string.digits) for _ in range(36))


@pytest.fixture(scope="module")
def scan() -> Iterator[SecondScan]:
    with SecondScan(private_dir(groove_cache() / "kingfisher")) as one:  # 4 s where it is empty
        yield one


class Counting:
    """Stands for the scanner: finds the word PLANTED, and counts what it was given."""

    def __init__(self) -> None:
        self.texts = 0

    def scan(self, texts: list[str]) -> list[str]:
        self.texts += len(texts)
        return ["planted-rule" if "PLANTED" in text else "" for text in texts]


def test_a_key_is_found_and_ordinary_text_is_not(scan: SecondScan) -> None:
    texts = ["How do I sort a list?", f"my key is {token()}", "", "lone \ud800 surrogate"]
    assert scan.scan(texts) == ["", GITHUB, "", ""]


def test_a_remark_in_the_text_excuses_nothing(scan: SecondScan) -> None:
    assert scan.scan([f"{token()} # kingfisher:ignore gitleaks:allow"]) == [GITHUB]


def test_placeholders_are_not_found(scan: SecondScan) -> None:
    text = "password = [API_KEY]\nAuthorization: [API_KEY]\nexport AWS_SECRET=[AWS_KEY]"
    assert scan.scan([text]) == [""]


def test_the_worker_holds_two_pipes_and_can_open_nothing_more(scan: SecondScan) -> None:
    scan.scan(["warm"])
    assert scan._worker is not None
    process = Path(f"/proc/{scan._worker._process.pid}")
    open_files = [str(entry.readlink()) for entry in (process / "fd").iterdir()]
    assert sorted(name.partition(":")[0] for name in open_files) == ["/dev/null", "pipe", "pipe"]
    limit = next(
        line for line in (process / "limits").read_text().splitlines() if "open files" in line
    )
    assert limit.split()[3:5] == ["0", "0"]  # soft and hard: no file and no socket, for good


def test_the_scanner_is_given_nothing_to_try_keys_with() -> None:
    source = Path(second_scan.__file__).with_name("second_scan_worker.py").read_text()
    assert "valid" not in source.lower()


def test_a_text_that_ends_the_worker_is_unscannable_and_the_others_are_scanned(
    scan: SecondScan, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = second_scan._Worker.ask

    def ask(worker: second_scan._Worker, batch: tuple[bytes, ...], limit_s: float) -> object:
        if b"deadly" in batch:
            worker._process.kill()
        return whole(worker, batch, limit_s)

    monkeypatch.setattr(second_scan._Worker, "ask", ask)
    assert scan.scan(["fine", "deadly", token()]) == ["", UNSCANNABLE, GITHUB]


def test_without_the_scanner_the_owner_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(second_scan, "rules_version", lambda: "")
    with SecondScan(tmp_path) as one, pytest.raises(SecondScanError, match="not installed"):
        one.scan(["x"])


def test_a_session_with_a_find_is_left_out_and_counted_by_rule(tmp_path: Path) -> None:
    asked = sessions(2)
    asked[1] = replace(asked[1], completion="PLANTED")
    result = screened(tmp_path, asked, Counting())
    assert asked[1] not in result.sessions and len(result.sessions) == len(asked) - 1
    assert left_out(tmp_path) == {"planted-rule": 1}
    assert result.told() == "second scan: 1 sessions left out (planted-rule 1)"


def test_a_session_is_scanned_once_until_its_text_changes(tmp_path: Path) -> None:
    scanner, asked = Counting(), sessions(3)
    screened(tmp_path, asked, scanner)
    screened(tmp_path, [*asked, *sessions(1, start=50)], scanner)
    assert scanner.texts == len(asked) + len(TOPICS)
    changed = [replace(asked[0], completion="PLANTED"), *asked[1:]]
    assert len(screened(tmp_path, changed, scanner).hits) == 1
    assert len(screened(tmp_path, asked, scanner).hits) == 0  # mended by a rescan of the corpus
    assert scanner.texts == len(asked) + len(TOPICS) + 2


def test_new_rules_scan_everything_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scanner, asked = Counting(), sessions(2)
    screened(tmp_path, asked, scanner)
    monkeypatch.setattr(second_scan, "rules_version", lambda: "kingfisher 99/1")
    screened(tmp_path, asked, scanner)
    assert scanner.texts == 2 * len(asked)


def test_the_memory_holds_no_text_and_forgets_what_is_deleted(tmp_path: Path) -> None:
    asked = sessions(2)
    asked[0] = replace(asked[0], prompt=f"PLANTED {token()}")
    screened(tmp_path, asked, Counting())
    disk = (tmp_path / FILE).read_text()
    assert "PLANTED" not in disk and token() not in disk and "question" not in disk
    screened(tmp_path, asked[1:], Counting())
    assert left_out(tmp_path) == {} and asked[0].session_id not in (tmp_path / FILE).read_text()


def test_many_sessions_are_remembered_in_few_bytes(tmp_path: Path) -> None:
    one = sessions(1)[0]
    many = [replace(one, session_id=f"s{n}") for n in range(20_000)]
    screened(tmp_path, many, scanner := Counting())
    screened(tmp_path, many, scanner)
    assert scanner.texts == 20_000
    assert (tmp_path / FILE).stat().st_size < 25 * 20_000


def test_a_damaged_memory_means_that_all_is_scanned_again(tmp_path: Path) -> None:
    scanner, asked = Counting(), sessions(1)
    screened(tmp_path, asked, scanner)
    (tmp_path / FILE).write_text('{"rules":')
    screened(tmp_path, asked, scanner)
    assert scanner.texts == 2 * len(asked)


def test_a_leaf_is_kept_back_until_all_that_it_learned_from_is_known_to_be_clean(
    tmp_path: Path,
) -> None:
    store = ForestStore(tmp_path / "leaves.db", b"o" * 32)
    asked = sessions(2)
    ids = [session.session_id for session in asked]
    clean, fouled, unseen = "aa" * 16, "bb" * 16, "cc" * 16
    store.use(clean, Role.TRAIN, ids[1:3], 1)
    store.use(fouled, Role.TRAIN, ids[:2], 1)
    store.use(unseen, Role.CONTROL, ["another"], 1)
    leaves = [clean, fouled, unseen]
    assert withheld(tmp_path, store, leaves).keys() == set(leaves)
    asked[0] = replace(asked[0], prompt="PLANTED")
    screened(tmp_path, asked, Counting())
    reasons = withheld(tmp_path, store, leaves)
    assert reasons.keys() == {fouled, unseen}
    assert "planted-rule" in reasons[fouled] and "waits" in reasons[unseen]
    store.unuse(fouled)
    assert withheld(tmp_path, store, leaves).keys() == {unseen}


class Recording(TopicTrainer):
    """Keeps the jobs that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: list[TrainJob] = []

    def train(self, job: TrainJob, report: Report = silent) -> Trained:
        self.jobs.append(job)
        return super().train(job, report)


def test_a_leaf_that_learned_what_is_left_out_now_is_trained_anew_without_it(
    tmp_path: Path,
) -> None:
    trainer = Recording()
    bench = Bench(
        tmp_path / "home", tiny_llama.build(tmp_path / "chassis"), sessions(100), trainer=trainer
    )
    bench.round().run(Instant(1_700_000_000))
    leaf = next(leaf.id for leaf in bench.store.forest() if leaf.adapter)
    fouled = min(bench.store.used(leaf, Role.TRAIN))
    fresh = sessions(200)
    bench.captured = [session for session in fresh if session.session_id != fouled]
    bench.left_out = frozenset({fouled})
    trainer.jobs.clear()
    bench.round().run(Instant(1_700_100_000))
    begun = {job.work.name: job.warm_start for job in trainer.jobs if leaf in job.work.parts}
    assert begun == {"leaf": None, "control": None}
    assert fouled not in bench.store.used(leaf, Role.TRAIN)
    others = [job for job in trainer.jobs if leaf not in job.work.parts]
    assert any(job.warm_start for job in others)  # who never learned it goes on


def test_without_the_scanner_nothing_trained_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ForestStore(tmp_path / "leaves.db", b"o" * 32)
    asked = sessions(1)
    store.use("aa" * 16, Role.TRAIN, [asked[0].session_id], 1)
    screened(tmp_path, asked, Counting())
    assert not screening.withheld(tmp_path, store, ["aa" * 16])
    monkeypatch.setattr(second_scan, "rules_version", lambda: "")
    assert screening.withheld(tmp_path, store, ["aa" * 16])


def test_no_bundle_is_served_before_its_sessions_are_known_to_be_clean(tmp_path: Path) -> None:
    chassis = tiny_llama.build(tmp_path / "chassis")
    tried = Exposures((Exposure(1, 16, 1.0, 0),), 9.0, 384, 20_000, 60.0)
    gate = Gate(open_chassis(chassis), TopicEvaluator(), tried, "7")
    bench = Bench(tmp_path / "home", chassis, sessions(100), gate=gate)
    bench.round().run(Instant(1_700_000_000))
    bench.captured = sessions(200)
    bench.round().run(Instant(1_700_100_000))
    bench.home.chmod(0o700)
    (bench.home / "groove.toml").write_text('[publish]\nnovel = "auto"\n')
    app = App(bench.home)
    app.__dict__["forests"] = bench.store  # of another origin than the keys of this home
    app.consent.record_consent(
        app.user_id, True, CURRENT_CONSENT_VERSION, scopes=(Scope.CAPTURE, Scope.PUBLISH)
    )
    assert app.roots_to_serve() == []
    screened(app.home, bench.captured, Counting())
    assert len(app.roots_to_serve()) == 6  # of three mature leaves: the adapter and its control
    leaf = bench.store.forest().live()[0]
    fouled = min(bench.store.used(leaf.id, Role.TRAIN))
    told = [replace(s, prompt="PLANTED") if s.session_id == fouled else s for s in bench.captured]
    screened(app.home, told, Counting())
    served = app.roots_to_serve()
    assert leaf.adapter is not None and leaf.adapter.bundle not in served
    assert len(served) in (2, 4)  # it may have been another's style control too


class Home(App):
    """A home whose round ends before a model is needed."""

    def deploy_anew(self, tell: Tell, report: Report = silent) -> Deployed:
        return Deployed(0, {})


@pytest.fixture
def fouled_home(tmp_path: Path) -> Home:
    """A home with one session, stored before the rules knew what is in it."""
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    app = Home(folder)
    app.consent.record_consent(
        app.user_id, True, CURRENT_CONSENT_VERSION, scopes=(Scope.CAPTURE, Scope.TRAIN)
    )
    for number, (kind, content) in enumerate((("prompt", "why?"), ("completion", token(9)))):
        app.corpus.add_record(
            TrainingRecord(
                record_id=f"{number:032x}",
                user_id=app.user_id,
                session_id="s1",
                timestamp=1_700_000_000.0,
                domain="code",
                content_type=kind,
                content=content,
                metadata={},
                consent_version=CURRENT_CONSENT_VERSION,
            )
        )
    return app


def test_a_round_tells_what_it_leaves_out_and_takes_nothing_from_it(fouled_home: Home) -> None:
    told: list[Told] = []
    fouled_home.round(told.append)
    assert [t.text for t in told if t.event == "left out"] == [
        f"second scan: 1 sessions left out ({GITHUB} 1)"
    ]
    assert list(fouled_home.embeddings.ids()) == []
    assert left_out(fouled_home.home) == {GITHUB: 1}


def test_a_round_without_the_scanner_says_that_nothing_is_trained(
    fouled_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(second_scan, "rules_version", lambda: "")
    fouled_home.embeddings.append(["s1"], [0], np.ones((1, 384), np.float32) / 384**0.5)
    told: list[Told] = []
    fouled_home.round(told.append)
    text = next(t.text for t in told if t.event == "unscanned")
    assert second_scan.PACKAGE in text and text.endswith("nothing is trained")


def test_a_plan_starts_no_scan(fouled_home: Home) -> None:
    fouled_home.plan()
    assert not (fouled_home.home / FILE).exists()
