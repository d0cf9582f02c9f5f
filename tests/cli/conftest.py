# SPDX-License-Identifier: MIT
import pytest

from twin import Twin


@pytest.fixture
def twin(tmp_path):
    return Twin(str(tmp_path))
