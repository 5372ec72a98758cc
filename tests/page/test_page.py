"""The page in a browser, on a desktop and on a telephone."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from ddim_ode import Session, load_latent

ROOT = Path(__file__).parents[2]
PHOTO = ROOT / "examples" / "photo.jpg"
OTHER = ROOT / "analysis" / "images" / "cifar10_test" / "cat_0003.jpg"
CHROMIUM = shutil.which("chromium")
WIDTHS = {"desktop": 1300, "telephone": 390}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; on Debian: apt-get install chromium")


@pytest.fixture(scope="module")
def served(class_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, Path]]:
    """Its address, and the folders where it runs and where it lives at home, both empty."""
    folder, home = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("home")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "ddim_ode", "page", "--model", str(class_model), "--port", port, "--device", "cpu"]
    own = {"HOME": str(home), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=folder, env={**os.environ, **own}, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        assert process.stdout.readline() == f"http://127.0.0.1:{port} shows the page; Ctrl-C ends it\n"
        wait_for(int(port))
        yield f"http://127.0.0.1:{port}", folder, home
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert not [path for path in Path(tempfile.gettempdir()).glob("ddim-ode-page-*") if str(process.pid) in path.name]


def wait_for(port: int) -> None:
    end = time.monotonic() + 60
    while True:
        with socket.socket() as visitor:
            if visitor.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < end, "nothing listens"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Visit:
    """A window, and what it asked of whom and complained of."""

    def __init__(self, browser: Browser, address: str, width: int) -> None:
        self.page: Page = browser.new_page(viewport={"width": width, "height": 1000})
        self.asked, self.complaints = set[str](), list[str]()
        self.page.on("request", lambda request: self.asked.add(urlparse(request.url).hostname or ""))
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.goto(address)
        self.page.get_by_role("button", name="Encode and decode").wait_for()

    def drop(self, path: Path, place: str = "picture") -> None:
        with self.page.expect_response(lambda response: "/upload" in response.url):
            self.page.locator(f"#{place} input[type=file]").set_input_files(path)
        self.page.wait_for_timeout(500)

    def said(self, words: str) -> str:
        """What stands in the field that comes to hold these ``words``."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            for area in self.page.locator("textarea").all():
                if words in area.input_value():
                    return area.input_value()
            self.page.wait_for_timeout(100)
        raise AssertionError(f"nothing says '{words}'")


@pytest.mark.parametrize("width", WIDTHS)
def test_there_and_back(served: tuple[str, Path, Path], browser: Browser, width: str, tmp_path: Path) -> None:
    address, folder, home = served
    visit = Visit(browser, address, WIDTHS[width])
    visit.drop(PHOTO)
    visit.page.get_by_role("button", name="Encode and decode").click()
    line = visit.said("MSE ")
    assert line.startswith("MSE ")
    assert line.count("dpmpp3m, 10 steps on log-snr, 10 NFE, ") == 2
    with visit.page.expect_download() as download:
        visit.page.locator("a[download='photo.latent.pt']").click()
    assert download.value.suggested_filename == "photo.latent.pt"
    visit.page.get_by_role("button", name="Error against steps").click()
    visit.page.wait_for_function("document.querySelectorAll('.vega-embed, canvas, svg.marks').length >= 2")
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width]
    assert visit.asked <= {"127.0.0.1", ""}
    assert visit.complaints == []
    assert list(folder.iterdir()) == []
    assert list(home.iterdir()) == []


def test_between_two_pictures(served: tuple[str, Path, Path], browser: Browser) -> None:
    visit = Visit(browser, served[0], 1300)
    visit.page.get_by_role("tab", name="Between two").click()
    visit.drop(PHOTO, "one-picture")
    visit.drop(OTHER, "another-picture")
    visit.page.get_by_role("button", name="Go from one to the other").click()
    visit.said("MSE of the ends")
    before = {image.get_attribute("src") for image in visit.page.locator("img:visible").all()}
    visit.page.get_by_label("range slider for From one to the other").fill("0.5")
    changed = "old => [...document.images].some(image => image.src && !old.includes(image.getAttribute('src')))"
    visit.page.wait_for_function(changed, arg=sorted(before))
    assert visit.complaints == []


def test_an_edit(served: tuple[str, Path, Path], browser: Browser) -> None:
    visit = Visit(browser, served[0], 1300)
    visit.page.get_by_role("tab", name="Edit").click()
    visit.drop(PHOTO, "picture-to-edit")
    visit.page.get_by_label("What it should show").click()
    visit.page.get_by_role("option", name="dog").click()
    visit.page.get_by_role("button", name="Edit", exact=True).click()
    assert visit.said("strength ").startswith("strength 0.")
    visit.page.locator("a[download='photo.edit.png']").first.wait_for()
    assert visit.complaints == []


def test_errors_are_the_sentences_of_the_command_line(
    served: tuple[str, Path, Path], browser: Browser, tmp_path: Path
) -> None:
    visit = Visit(browser, served[0], 1300)
    go = visit.page.get_by_role("button", name="Encode and decode")
    go.click()
    visit.page.get_by_text("there is no picture yet; drop one, or click to choose a file").wait_for()
    drawing = tmp_path / "drawing.svg"
    drawing.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    visit.drop(drawing)
    go.click()
    visit.page.get_by_text("drawing.svg' is not a picture that Pillow can open").wait_for()


def test_pictures_are_read_as_they_are(
    served: tuple[str, Path, Path], browser: Browser, class_model: Path, tmp_path: Path
) -> None:
    """One of grey and transparency, which gradio would turn to colours."""
    picture = tmp_path / "grey.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 2), dtype=np.uint8), "LA").save(picture)
    visit = Visit(browser, served[0], 1300)
    visit.drop(picture)
    visit.page.get_by_role("button", name="Encode and decode").click()
    visit.said("MSE ")
    with visit.page.expect_download() as download:
        visit.page.locator("a[download='grey.latent.pt']").click()
    download.value.save_as(tmp_path / "page.pt")
    alone = Session(class_model).encode(picture, steps=10)
    assert torch.equal(load_latent(tmp_path / "page.pt").x_T, alone.x_T)


def test_a_port_that_is_taken(served: tuple[str, Path, Path], class_model: Path, tmp_path: Path) -> None:
    port = served[0].rpartition(":")[2]
    command = [sys.executable, str(ROOT / "cli.py"), "page", "--model", str(class_model), "--port", port]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert port in done.stderr
    assert len(done.stderr.splitlines()) == 1
