"""Stored bytes that changed although size, time and inode did not: told by `reconx store verify`, mended by `--verify`."""

import os
from collections import Counter

import pytest
from standins import artifact_bytes

from reconx_core.cache import digests
from reconx_core.settings import STAGES


@pytest.fixture(autouse=True)
def trusting():
    yield
    digests.verify_from(0.0)


@pytest.fixture
def command(photos, tmp_path):
    return "reconstruct", photos, "-o", tmp_path / "out", "--store", tmp_path / "store"


@pytest.fixture
def hashed(monkeypatch):
    """How often each file was hashed."""
    counts, digest = Counter(), digests.file_digest

    def counted(path):
        counts[path] += 1
        return digest(path)

    monkeypatch.setattr(digests, "file_digest", counted)
    return counts


def flip(path):
    """Flip a byte as a failing disk does: size, time and inode stay."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def stored_array(store):
    return max((store / "condition").glob("*/condition.zarr/renders/c/**/*"), key=lambda p: p.is_file() and p.stat().st_size)


def test_a_flipped_byte_is_named_and_then_mended(reconx, tiny, command, tmp_path):
    store = tmp_path / "store"
    reconx(*command)
    before, victim = artifact_bytes(store), stored_array(store)
    outcome = reconx("store", "verify", "--store", store)
    assert (outcome.code, outcome.out) == (0, f"7 of 7 artifacts in {store} are whole.\n")
    flip(victim)
    tiny()
    assert (reconx(*command).code, tiny()) == (0, [])
    outcome = reconx("store", "verify", "--store", store)
    assert outcome.code == 1
    entry = victim.relative_to(store).parts[1]
    damaged, summary = outcome.out.splitlines()
    assert damaged.startswith(f"garden: condition/{entry}: condition.zarr/renders/c/0/0/0/0 changed since it was written")
    assert summary == f"6 of 7 artifacts in {store} are whole; a run that needs them makes them anew."
    assert (reconx(*command).code, tiny()) == (0, ["condition"])  # now it is known
    assert artifact_bytes(store) == before


def test_verify_reads_everything_once_and_mends_what_it_finds(reconx, tiny, command, hashed, photos, tmp_path):
    store = tmp_path / "store"
    digests.backdate(photos.iterdir())
    reconx(*command)
    before = artifact_bytes(store)
    flip(stored_array(store))
    flip(photos / "a.png")
    tiny()
    hashed.clear()
    assert reconx(*command, "--verify").code == 0
    assert tiny() == ["views", "condition"]
    outside = {"manifest.json", "measured.json", "prefect.json"}
    kept = [p for stage in STAGES for p in (store / stage).rglob("*") if p.is_file() and p.name not in outside]
    assert {hashed[path] for path in kept if path.relative_to(store).parts[0] not in ("views", "condition")} == {1}
    assert {hashed[path] for path in photos.iterdir()} == {1}
    after = artifact_bytes(store)
    arrays = [name for name in before if not name.endswith("manifest.json")]  # which names the key of another `views`
    assert {name: after[name] for name in arrays} == {name: before[name] for name in arrays}


def test_a_flipped_byte_in_a_remembered_digest_changes_nothing(reconx, tiny, command, tmp_path):
    store = tmp_path / "store"
    reconx(*command)
    before = artifact_bytes(store)
    tiny()
    memories = [path for path in (store / digests.FOLDER).rglob("*") if path.is_file()]
    assert len(memories) > len(STAGES)
    for path in memories:
        content = path.read_bytes()
        # A digit of a digest becomes another one.
        place = content.rfind(b'", 1') - 10
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    assert (reconx(*command).code, tiny()) == (0, [])
    assert artifact_bytes(store) == before


def test_a_store_that_is_not_there(reconx, tmp_path):
    outcome = reconx("store", "verify", "--store", tmp_path / "nowhere")
    assert (outcome.code, outcome.err) == (2, f"reconx: There is no store {tmp_path / 'nowhere'}; name it by --store.\n")
