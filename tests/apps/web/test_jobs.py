"""Jobs of the web door on the disk: isolation, quotas, names, and what a restart finds. No worker runs here."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from apps.web.jobs import Job, Store, claimed, owner_of, safe_name
from apps.web.limits import Busy, Limits, size_words
from apps.web.scheduler import Scheduler
from scene.errors import InputError

ANNA, BEN = "anna" * 10, "ben" * 14


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "jobs", Limits(free_bytes=0))


def uploads(folder: Path, *names: str, size: int = 10) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x" * size)
    return [folder / name for name in names]


def test_a_visitor_finds_their_own_jobs_and_nobody_elses(store: Store) -> None:
    job = store.create(ANNA, "recon", "vase")
    assert store.get(job.key, ANNA) == job
    assert [found.key for found in store.of(ANNA)] == [job.key]
    assert store.of(BEN) == []
    refusals = set()
    for key, visitor in ((job.key, BEN), (job.key, ""), ("A" * 32, ANNA), ("../jobs", ANNA), (None, ANNA)):
        with pytest.raises(InputError) as refused:
            store.get(key, visitor)  # type: ignore[arg-type]
        refusals.add(str(refused.value))
    assert len(refusals) == 1  # a foreign key is answered like one that never was


def test_keys_are_long_and_the_visitor_is_not_kept(store: Store) -> None:
    keys = {store.create(f"{ANNA}{i}", "recon", "x").key for i in range(20)}
    assert len(keys) == 20 and all(len(key) == 32 for key in keys)  # 192 bits in base 64
    assert not any(ANNA in path.read_text() for path in store.folder.rglob("job.json"))


def test_nobody_without_a_name_makes_jobs(store: Store) -> None:
    with pytest.raises(InputError, match="cookie"):
        store.create("", "recon", "x")


def test_jobs_are_found_again_after_a_restart(store: Store) -> None:
    job = store.enqueue(store.create(ANNA, "recon", "vase"), arguments=("--steps", "5"), minutes=2.0)
    (store.folder / "notes").mkdir()
    broken = store.create(ANNA, "recon", "torn")
    (store.path(broken) / "job.json").write_text('{"key": ')
    again = Store(store.folder, store.limits)
    assert again.all() == [job]


def test_a_job_that_claims_another_name_is_left_out(store: Store) -> None:
    job = store.create(ANNA, "recon", "vase")
    facts = json.loads((store.path(job) / "job.json").read_text())
    (store.path(job) / "job.json").write_text(json.dumps({**facts, "key": "A" * 32}))
    assert Store(store.folder).all() == []


def test_quotas_on_jobs(tmp_path: Path) -> None:
    store = Store(tmp_path, Limits(free_bytes=0, active=2, queue=3, kept=4))
    first, second, third = (store.create(ANNA, "recon", f"{i}") for i in range(3))
    store.enqueue(first)
    with pytest.raises(InputError, match="already"):
        store.enqueue(first)
    store.enqueue(second)
    with pytest.raises(InputError, match="2 jobs at work"):
        store.enqueue(third)
    store.enqueue(store.create(BEN, "recon", "b"))
    with pytest.raises(Busy, match="no more are taken"):
        store.enqueue(store.create(BEN, "recon", "b2"))
    store.change(third.key, state="done")
    draft = store.create(ANNA, "recon", "draft")
    store.create(ANNA, "recon", "the draft before makes room for this one")
    assert store.known(draft.key) is None and not store.path(draft).exists()
    for job in store.of(ANNA):
        store.change(job.key, state="done")
    with pytest.raises(InputError, match="delete one"):
        store.create(ANNA, "recon", "results are never removed to make room")


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    with pytest.raises(Busy, match="disk"):
        Store(tmp_path, Limits(free_bytes=1 << 60)).create(ANNA, "recon", "x")


def test_uploads_keep_plain_names_and_their_quotas(tmp_path: Path) -> None:
    store = Store(tmp_path / "jobs", Limits(free_bytes=0, files=3, upload_bytes=100))
    job = store.create(ANNA, "recon", "x")
    came = uploads(tmp_path / "up", "été 1.JPG", "..jpg", "-rf.jpg")
    store.take_upload(job, came)
    kept = sorted(path.name for path in (store.path(job) / "source").iterdir())
    assert kept == ["_t__1.JPG", "file.jpg", "rf.jpg"]
    assert not any(path.exists() for path in came)  # moved: no second copy lies about
    other = store.create(ANNA, "recon", "y")
    with pytest.raises(InputError, match="4 files"):
        store.take_upload(other, uploads(tmp_path / "up", "a", "b", "c", "d"))
    with pytest.raises(InputError, match="150 bytes came"):
        store.take_upload(other, uploads(tmp_path / "up", "a", "b", "c", size=50))
    with pytest.raises(InputError, match="nothing"):
        store.take_upload(other, [])


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("a.jpg", "a.jpg"),
        ("../../etc/passwd", "_.._etc_passwd"),
        (".bashrc", "file.bashrc"),
        ("--out=x.png", "out_x.png"),
        ("", "file"),
        ("x" * 300 + ".jpeg", "x" * 80 + ".jpeg"),
        ("a\0b\n.png", "a_b_.png"),
    ],
)
def test_safe_names(name: str, kept: str) -> None:
    assert safe_name(name, set()) == kept


def test_equal_names_get_numbers() -> None:
    assert safe_name("A.jpg", {"a.jpg", "a-2.jpg"}) == "A-3.jpg"


def test_the_source_is_the_only_archive_or_the_folder(store: Store, tmp_path: Path) -> None:
    for names, source in ((("a.zip",), "a.zip"), (("a.jpg",), "source"), (("a.jpg", "b.jpg"), "source")):
        job = store.create(ANNA, "recon", "x")
        store.take_upload(job, uploads(tmp_path / "up", *names))
        assert store.source(job).name == source


def test_what_nobody_needs_is_removed_and_what_runs_is_not(store: Store) -> None:
    now = time.time()
    states = {name: store.create(ANNA + name, "recon", name) for name in ("draft", "queued", "running", "done")}
    for name, job in states.items():
        store.change(job.key, state=name)
    hour, day = store.limits.draft_seconds + 9, store.limits.keep_seconds + 9
    assert [job.title for job in store.expire(now + hour)] == ["draft"]
    assert [job.title for job in store.expire(now + day)] == ["done"]
    assert sorted(job.title for job in store.all()) == ["queued", "running"]
    with pytest.raises(InputError, match="cancel it first"):
        store.remove(states["running"])


def test_visitors_take_turns(store: Store) -> None:
    """Anna asked four times before Ben asked at all; he still comes second."""
    scheduler = Scheduler(Store(store.folder, replace(store.limits, active=9)))
    queued = []
    for visitor, title in ((ANNA, "a1"), (ANNA, "a2"), (ANNA, "a3"), (BEN, "b1"), (BEN, "b2")):
        queued.append(scheduler.start(scheduler.store.create(visitor, "recon", title)))
    assert [job.title for job in scheduler.order()] == ["a1", "b1", "a2", "b2", "a3"]
    assert [scheduler.position(job) for job in queued] == [0, 2, 4, 1, 3]
    scheduler.store.change(queued[0].key, state="running")
    assert [job.title for job in scheduler.order()] == ["b1", "a2", "b2", "a3"]


def test_a_waiting_job_is_cancelled_at_once(store: Store) -> None:
    scheduler = Scheduler(store)
    job = scheduler.start(store.create(ANNA, "recon", "x"))
    assert scheduler.cancel(job).state == "stopped"
    with pytest.raises(InputError, match="neither"):
        scheduler.cancel(job)
    with pytest.raises(InputError, match="nothing to go on from"):
        scheduler.resume(job)


def test_a_folder_of_jobs_has_one_server_and_keeps_no_uploads(tmp_path: Path) -> None:
    with claimed(tmp_path / "jobs") as uploads:
        (uploads / "half of a photo").touch()
        with pytest.raises(InputError, match="another maquette web"), claimed(tmp_path / "jobs"):
            pass
        assert (uploads / "half of a photo").exists()
        assert Store(tmp_path / "jobs").all() == []
    assert not uploads.exists()
    uploads.mkdir()
    (uploads / "of a server that was killed").touch()
    with claimed(tmp_path / "jobs") as uploads:
        assert list(uploads.iterdir()) == []


def test_words_for_sizes() -> None:
    assert [size_words(n) for n in (0, 999, 1_000, 3_200_000, 2 << 30)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "3.2 MB",
        "2.1 GB",
    ]


def test_an_owner_is_not_the_visitor() -> None:
    assert owner_of(ANNA) != owner_of(BEN) and ANNA not in owner_of(ANNA)
    assert Job("k", owner_of(ANNA), "recon", "t", 0.0, 0.0).state == "draft"
