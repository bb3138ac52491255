"""Remembered digests: no file is read twice, and nothing that is remembered is ever wrong."""

import hashlib
import json
import os
import subprocess
import sys
import time

import pytest

from reconx_core.cache import digests, store

GROUP = "views/key"


def sha(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def read(monkeypatch):
    """The names of the files that were read."""
    names, digest = [], digests.file_digest

    def noted(path):
        names.append(path.name)
        return digest(path)

    monkeypatch.setattr(digests, "file_digest", noted)
    return names


@pytest.fixture
def verifying():
    """Calls ``verify_from``, and sets it back."""
    yield digests.verify_from
    digests.verify_from(0.0)


@pytest.fixture
def files(tmp_path):
    made = {name: tmp_path / "data" / name for name in ("a.png", "b.png")}
    (tmp_path / "data").mkdir()
    for name, path in made.items():
        path.write_bytes(name.encode())
    digests.backdate(made.values())
    return made


def digests_of(tmp_path, files):
    return digests.digests_of(tmp_path / "store", GROUP, files)


def rewrite_with_the_same_stamp(path, content):
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert digests.stamp_of(path) == digests.Stamp(len(content), before.st_mtime_ns, before.st_ino)


def test_a_file_is_read_again_only_when_its_stamp_changes(tmp_path, files, read):
    first = digests_of(tmp_path, files)
    assert first == {name: sha(name.encode()) for name in files}
    assert sorted(read) == ["a.png", "b.png"]
    assert digests_of(tmp_path, files) == first
    assert len(read) == 2
    files["a.png"].write_bytes(b"a!png")  # of the same size
    assert digests_of(tmp_path, files) == first | {"a.png": sha(b"a!png")}
    other = tmp_path / "data" / "new"
    other.write_bytes(b"b!png")
    os.utime(other, ns=(0, files["b.png"].stat().st_mtime_ns))
    os.replace(other, files["b.png"])  # of the same size and time
    assert digests_of(tmp_path, files) == {"a.png": sha(b"a!png"), "b.png": sha(b"b!png")}


def test_a_file_that_was_changed_just_now_is_not_trusted(tmp_path, files):
    path = files["a.png"]
    for age in (1.5, 0.0, -60.0):  # of a time to come, too: clocks of machines differ
        path.write_bytes(b"first")
        os.utime(path, (0, time.time() - age))
        assert digests_of(tmp_path, files)["a.png"] == sha(b"first")
        rewrite_with_the_same_stamp(path, b"other")
        assert digests_of(tmp_path, files)["a.png"] == sha(b"other")


def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(tmp_path, files, monkeypatch):
    digest = digests.file_digest

    def meddled(path):
        found = digest(path)
        if path.name == "a.png":
            path.write_bytes(b"longer than before")
            digests.backdate([path])
        return found

    monkeypatch.setattr(digests, "file_digest", meddled)
    digests_of(tmp_path, files)
    assert set(digests.recall(tmp_path / "store", GROUP)) == {"b.png"}


def test_the_same_stamp_with_other_bytes_is_found_by_verifying_alone(tmp_path, files, verifying):
    before = digests_of(tmp_path, files)
    rewrite_with_the_same_stamp(files["a.png"], b"A.png")
    assert digests_of(tmp_path, files) == before
    verifying(time.time())
    assert digests_of(tmp_path, files)["a.png"] == sha(b"A.png")
    verifying(0.0)
    assert digests_of(tmp_path, files)["a.png"] == sha(b"A.png")


def test_what_was_read_in_a_verifying_run_is_not_read_again_in_it(tmp_path, files, read, verifying):
    digests_of(tmp_path, files)
    verifying(time.time())
    for _ in range(3):
        digests_of(tmp_path, files)
    assert len(read) == 4


def test_no_flipped_byte_in_what_is_remembered_gives_a_wrong_digest(tmp_path, files):
    truth = digests_of(tmp_path, files)
    (memory,) = (tmp_path / "store" / digests.FOLDER / "views").iterdir()
    whole = memory.read_bytes()
    for place in range(len(whole)):
        for bit in (1, 64):
            memory.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            assert digests.recall(tmp_path / "store", GROUP) == {}
    memory.write_bytes(whole[:-20])
    assert digests_of(tmp_path, files) == truth
    assert memory.read_bytes()[:64] == sha(memory.read_bytes()[65:]).encode()


@pytest.mark.parametrize("content", [b"", b"\n", b"[]", b"null", b'{"a.png": 1}', b'{"a.png": [[1], "x", 2]}'])
def test_what_another_version_may_have_written_is_nothing(tmp_path, files, content):
    place = tmp_path / "store" / digests.FOLDER / "views" / "key.json"
    place.parent.mkdir(parents=True)
    place.write_bytes(sha(content).encode() + b"\n" + content)
    assert digests_of(tmp_path, files) == {name: sha(name.encode()) for name in files}


def test_a_store_that_cannot_be_written_to_only_costs_time(tmp_path, files):
    (tmp_path / "store").write_text("a file where a folder is needed")
    assert digests_of(tmp_path, files) == digests_of(tmp_path, files) == {name: sha(name.encode()) for name in files}


@pytest.mark.long
def test_many_processes_remember_at_once(tmp_path, files):
    """Each changes a file of its own and asks for all, over and over; none ever gets another's digest or an error."""
    code = f"""
import hashlib, sys
from pathlib import Path
from reconx_core.cache import digests
me, data = sys.argv[1], Path({str(tmp_path / "data")!r})
for i in range(60):
    (data / me).write_bytes(f"{{me}} {{i}}".encode())
    digests.backdate([data / me])
    found = digests.digests_of(Path({str(tmp_path / "store")!r}), "views/key", {{n: data / n for n in (me, "a.png", "b.png")}})
    for name, content in ((me, f"{{me}} {{i}}"), ("a.png", "a.png"), ("b.png", "b.png")):
        assert found[name] == hashlib.sha256(content.encode()).hexdigest(), (name, i)
"""
    started = [subprocess.Popen([sys.executable, "-c", code, f"own-{n}"]) for n in range(4)]
    assert [process.wait(timeout=60) for process in started] == [0] * 4
    assert set(digests.recall(tmp_path / "store", GROUP)) >= {"a.png", "b.png"}


# --- artifacts ---------------------------------------------------------------------------------------------------------


def test_what_was_published_is_not_read_again(tmp_path, read):
    published = store.publish(tmp_path, "views", "key", {}, {"a.txt": b"some", "b.txt": b"more"}, {})
    assert sorted(read) == ["a.txt", "b.txt"]
    assert store.find(tmp_path, "views", "key") == published
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert store.find(moved, "views", "key") == published
    assert len(read) == 2


def test_a_change_right_after_publishing_is_found(tmp_path):
    published = store.publish(tmp_path, "views", "key", {}, {"a.txt": b"some"}, {})
    (published.folder(tmp_path) / "a.txt").write_bytes(b"Some")
    with pytest.raises(store.DamagedEntry, match=r"a\.txt changed since it was written"):
        store.find(tmp_path, "views", "key")


def test_a_flipped_byte_of_the_same_stamp_stays_found_once_it_was(tmp_path, verifying):
    published = store.publish(tmp_path, "views", "key", {}, {"a.txt": b"some"}, {})
    rewrite_with_the_same_stamp(published.folder(tmp_path) / "a.txt", b"Some")
    assert store.find(tmp_path, "views", "key") == published
    for since in (time.time(), 0.0):
        verifying(since)
        with pytest.raises(store.DamagedEntry):
            store.find(tmp_path, "views", "key")


def test_nothing_is_kept_of_an_artifact_that_is_removed(tmp_path):
    store.publish(tmp_path, "views", "key", {}, {"a.txt": b"some"}, {})
    store.remove(tmp_path, "views", "key")
    assert [path for path in (tmp_path / digests.FOLDER).rglob("*") if path.is_file()] == []
    again = store.publish(tmp_path, "views", "key", {}, {"a.txt": b"else"}, {})
    assert store.find(tmp_path, "views", "key") == again


def test_a_record_that_is_being_written_is_no_damage(tmp_path):
    published = store.publish(tmp_path, "views", "key", {}, {"a.txt": b"some"}, {})
    (published.folder(tmp_path) / f".{store.RECORD}.0123abcd").write_text("{")
    assert store.find(tmp_path, "views", "key") == published


def test_names_that_are_not_utf_8_are_remembered(tmp_path, read):
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / name).write_bytes(b"x")
    digests.backdate([tmp_path / name])
    for _ in range(2):
        assert digests.digests_of(tmp_path / "store", GROUP, {name: tmp_path / name}) == {name: sha(b"x")}
    assert read == [name]
    (memory,) = (tmp_path / "store" / digests.FOLDER / "views").iterdir()
    assert json.loads(memory.read_bytes().split(b"\n")[1])
