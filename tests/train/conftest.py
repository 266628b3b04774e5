from pathlib import Path

import pytest

from support import small


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.data_set(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.teacher_folder(tmp_path_factory.getbasetemp())
