"""A data set of drawn lesions for the clients."""

from pathlib import Path

import pytest

from support import small


@pytest.fixture(scope="session")
def lesions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.data_set(tmp_path_factory.getbasetemp())
