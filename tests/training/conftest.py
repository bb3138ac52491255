"""One clip for all tests here."""

import pytest
from small_clip import small_clip


@pytest.fixture(scope="session")
def clip():
    return small_clip()
