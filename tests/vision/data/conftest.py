import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.vision.data.trees import plant


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder; notes what was asked for, and sends only the first bytes of what it is told to cut."""

    def do_GET(self):
        self.server.requests.append(self.name)
        super().do_GET()

    def copyfile(self, source, outputfile):
        outputfile.write(source.read()[: self.server.cut.get(self.name)])

    @property
    def name(self):
        return self.path.partition("?")[0].lstrip("/")

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server of `server.folder`, at `server.url`."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as httpd:
        httpd.folder, httpd.url, httpd.requests, httpd.cut = folder, f"http://127.0.0.1:{httpd.server_port}", [], {}
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield httpd
        httpd.shutdown()


@pytest.fixture
def tree():
    return plant()
