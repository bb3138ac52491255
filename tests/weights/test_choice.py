"""What `auto` stands for."""

import pytest

from reconx_core.settings import PointcloudSettings
from reconx_core.weights.choice import resolve_geometry


@pytest.fixture(autouse=True)
def weights(tmp_path, monkeypatch):
    monkeypatch.setenv("RECONX_WEIGHTS", str(tmp_path))
    return tmp_path


def chosen(**settings):
    return resolve_geometry(PointcloudSettings(**settings)).backend


def test_without_weights_geometry_is_classical():
    assert chosen() == "classical"


@pytest.mark.parametrize("name", ["DA3-BASE", "DA3-SMALL"])
def test_published_weights_are_used_where_they_are(weights, name):
    (weights / name).mkdir()
    assert chosen() == "da3"


def test_weights_that_the_settings_name_count(weights):
    (weights / "DA3-BASE").mkdir()
    assert chosen(weights="mine") == "classical"
    (weights / "mine").mkdir()
    assert chosen(weights="mine") == "da3"


def test_a_backend_that_is_named_stays(weights):
    (weights / "DA3-BASE").mkdir()
    assert chosen(backend="classical") == "classical"
