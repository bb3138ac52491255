"""Sources are read beside the first scenes: in their order, each on record before it is used."""

import json
import threading

import pytest
from standins import write_folder

from flows.execution import sources
from flows.execution.sources import BATCH, read_ahead
from reconx_core.errors import UserError


@pytest.fixture
def gate(monkeypatch):
    """Sources are read without looking at them; "slow" waits for the event that this returns, "bad" cannot be read."""
    opened = threading.Event()

    def digest(source, root):
        if source == "slow":
            assert opened.wait(20)
        if source == "bad":
            raise UserError("Cannot read bad.")
        return f"digest of {source}"

    monkeypatch.setattr(sources, "source_digest", digest)
    return opened


def test_the_first_scene_does_not_wait_for_the_others(gate, tmp_path):
    with read_ahead(["a", "slow", "b"], tmp_path) as digest_of:
        assert digest_of("a") == "digest of a"
        threading.Timer(0.1, gate.set).start()
        assert [digest_of(source) for source in ("slow", "b")] == ["digest of slow", "digest of b"]


def test_a_digest_is_told_before_it_is_used(gate, tmp_path):
    told = []
    everything = [str(i) for i in range(500)]
    with read_ahead(everything, tmp_path, lambda read: told.append(list(read))) as digest_of:
        for source in everything:
            digest_of(source)
            assert any(source in batch for batch in told)
    assert [source for batch in told for source in batch] == everything
    sizes = [len(batch) for batch in told]
    assert (sizes[:4], max(sizes)) == ([1, 2, 4, 8], BATCH)


def test_errors_reach_the_scene_and_no_other(gate, tmp_path):
    with read_ahead(["a", "bad", "b"], tmp_path) as digest_of:
        with pytest.raises(UserError, match="Cannot read bad"):
            digest_of("bad")
        assert digest_of("b") == "digest of b"

    def full(read):
        raise UserError("The disk is full.")

    with read_ahead(["a", "b"], tmp_path, full) as digest_of, pytest.raises(UserError, match="The disk is full"):
        digest_of("b")


def test_the_end_of_a_run_does_not_wait_for_sources_that_nobody_needs(gate, tmp_path):
    told = []
    with read_ahead(["a", "slow", *map(str, range(1000))], tmp_path, lambda read: told.extend(read)) as digest_of:
        digest_of("a")
        threading.Timer(0.1, gate.set).start()
    assert len(told) < 10


@pytest.mark.slow
def test_scenes_start_while_others_are_being_read(reconx, tiny, tmp_path, monkeypatch):
    """The third scene's photos are read only once the first scene is done; its key is in `request.json` by then."""
    for name in ("attic", "cellar", "den"):
        write_folder(tmp_path / "data" / name)
    digest, out, seen = sources.source_digest, tmp_path / "out", {}

    def late(source, root):
        if source.endswith("den"):
            for _ in range(400):
                if list((root / "metrics").glob("*/manifest.json")):
                    break
                threading.Event().wait(0.05)
            seen["done"] = len(list((root / "metrics").glob("*/manifest.json")))
            seen["recorded"] = set(json.loads((out / "request.json").read_text())["views"][""])
        return digest(source, root)

    monkeypatch.setattr(sources, "source_digest", late)
    assert reconx("evaluate", tmp_path / "data", "-o", out, "--store", tmp_path / "store").code == 0
    assert seen["done"] >= 1
    assert seen["recorded"] == {"attic"}
    assert set(json.loads((out / "request.json").read_text())["views"][""]) == {"attic", "cellar", "den"}
