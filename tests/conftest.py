import os
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ['OMP_NUM_THREADS'] = '1'  # for the scripts that tests start: tiny models only lose time to a second thread
torch.set_num_threads(1)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current directory: the scripts read and write data/ and out/ there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
