import base64

import pytest

from lightning_znorm.compare.report import plots

# the smallest picture
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")


@pytest.fixture(autouse=True)
def _pictures(request, monkeypatch):
    """The figures of a report are made, and only drawn, which takes a second, where a test is about pictures."""
    if "drawn" not in request.keywords:
        monkeypatch.setattr(plots, "render", lambda figure: PNG, raising=False)
