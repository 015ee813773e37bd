import hashlib
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ['OMP_NUM_THREADS'] = '1'  # also for the scripts that tests start
torch.set_num_threads(1)

def pytest_addoption(parser):
    parser.addoption('--mine', action='store_true', help='exercises.py in place of answers.py')

@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current directory: the scripts read and write data/ and out/ there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path

class Server(ThreadingHTTPServer):
    """Serves self.content under any name; drops the connection after drop_after bytes."""
    content, drop_after, requests = b'', None, 0

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests += 1
        self.send_response(200)
        self.send_header('Content-Length', str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content[:self.server.drop_after])

    def log_message(self, *_):
        pass

@pytest.fixture
def server(monkeypatch):
    """A web server on this machine."""
    def offer(name, content, file):
        """Make content the archive `file` of the data set `name`, with its own checksum."""
        server.content, sha256 = content, hashlib.sha256(content).hexdigest()
        source = dict(url=f'http://127.0.0.1:{server.server_port}/{file}', sha256=sha256)
        monkeypatch.setattr(f'prepare_data.{name}', source)

    with Server(('127.0.0.1', 0), Handler) as server:
        # polled often, since tests wait for its end
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        server.offer = offer
        yield server
        server.shutdown()
