import functools
import inspect
import os
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ['OMP_NUM_THREADS'] = '1'  # for the scripts that tests start: tiny models only lose time to a second thread
torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption('--mine', action='store_true', help='test_exercises.py tests exercises.py in place of answers.py')


getsource = functools.cache(inspect.getsource)


@pytest.fixture(autouse=True)
def comments_are_read_once(monkeypatch):
    """read_settings makes its help of the comments in the source: to find them takes longer than a step of a tiny model."""
    monkeypatch.setattr(inspect, 'getsource', getsource)


@pytest.fixture(autouse=True)
def no_picture(request, monkeypatch):
    """Training draws its pictures only in the tests that look at them: it takes longer than a small training."""
    if 'picture' not in request.node.name:
        import train  # here, since conftest.py must have set the path first
        for name in 'draw_loss', 'draw_kernels', 'draw_comparison':
            monkeypatch.setattr(train, name, lambda *_: None)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current directory: the scripts read and write data/ and out/ there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, in place of their files."""
    from matplotlib.figure import Figure
    figures = []
    monkeypatch.setattr(Figure, 'savefig', lambda figure, *_, **__: figures.append(figure))
    return figures


class Server(ThreadingHTTPServer):
    """Serves self.content, and misbehaves as told: drops the connection after drop_after bytes, once a request."""
    content, drop_after, ranges, lengths, requests = b'', None, True, True, 0


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.requests += 1
        begin = re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range', ''))
        start = int(begin[1]) if begin and server.ranges else 0
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if server.lengths:
            self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body[:server.drop_after])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server(('127.0.0.1', 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()  # polled often: tests wait for its end
        server.url = f'http://127.0.0.1:{server.server_port}/file.zip'
        yield server
        server.shutdown()
