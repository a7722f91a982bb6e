"""The page and the app in Chromium, driven as a visitor would, with and without a mouse.

`-m browser` runs them where Chromium and playwright are installed, the app's with gradio. The page
gets onnxruntime-web by npm, or from the folder that AUTOFORMER_ZOO_ONNXRUNTIME_WEB names.
"""

from __future__ import annotations

import base64
import functools
import http.server
import importlib
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import autoformer_zoo as az
from hub.web.build import build_page
from tests.helpers.onnx_models import made_images

CAT = Path(__file__).parents[2] / "docs" / "cat.jpg"
BROKEN = b"\x89PNG\r\n\x1a\nbroken"
RUNTIME = os.environ.get("AUTOFORMER_ZOO_ONNXRUNTIME_WEB")
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
PATIENCE = 30_000  # milliseconds
DROP = """([content, name]) => {
  const bytes = Uint8Array.from(atob(content), (each) => each.charCodeAt(0));
  const given = new DataTransfer();
  given.items.add(new File([bytes], name, { type: "image/jpeg" }));
  const event = new DragEvent("drop", { dataTransfer: given, bubbles: true });
  document.getElementById("drop").dispatchEvent(event);
}"""
STORED = "navigator.serviceWorker.getRegistration().then((found) => Boolean(found?.active))"
SHIFT = """() => new Promise((resolve) => {
  new PerformanceObserver((list) => {
    resolve(list.getEntries().reduce((sum, { value }) => sum + value, 0));
  }).observe({ type: "layout-shift", buffered: true });
  setTimeout(() => resolve(0), 500);
})"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.xdist_group("browser"),
    pytest.mark.filterwarnings("ignore"),  # gradio's
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", *CAMERA]
        )
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a page that shows autoformer_nano."""
    out = tmp_path_factory.mktemp("web") / "site"
    try:
        build_page(out, ("autoformer_nano",), Path(RUNTIME) if RUNTIME else None)
    except ValueError as error:
        pytest.skip(str(error))
    handler = functools.partial(QuietHandler, directory=str(out))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def app() -> Iterator[str]:
    """The address of the app."""
    pytest.importorskip("gradio")
    launch = importlib.import_module("hub.space.app").launch
    blocks, address, _ = launch("autoformer_nano", prevent_thread_lock=True, quiet=True)
    yield str(address)
    del blocks


def open_page(browser: Any, address: str, width: int = 1100) -> Iterator[Any]:
    """Yield the page; fail if it asked another origin for anything."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, permissions=["camera"], reduced_motion="reduce"
    )
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    yield page
    context.close()
    elsewhere = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert elsewhere == []


@pytest.fixture
def page(browser: Any, site: str) -> Iterator[Any]:
    yield from ready(open_page(browser, site))


@pytest.fixture
def narrow_page(browser: Any, site: str) -> Iterator[Any]:
    yield from ready(open_page(browser, site, width=400))


@pytest.fixture
def app_page(browser: Any, app: str) -> Iterator[Any]:
    yield from open_page(browser, app)


def ready(pages: Iterator[Any]) -> Iterator[Any]:
    for page in pages:
        until(page, "#status", "Ready")
        yield page


def until(page: Any, selector: str, text: str) -> None:
    """Wait until an element has a text."""
    page.locator(selector, has_text=re.compile(text)).first.wait_for(timeout=PATIENCE)


def answers(page: Any) -> dict[str, float]:
    """Return the page's list: percents by name."""
    lines = page.locator("#answers li").all_inner_texts()
    pairs = (line.replace("%", "").split("\n") for line in lines)
    return {name: float(percent) for name, percent in pairs}


def test_page_answers_as_python_does(page: Any, tmp_path: Path) -> None:
    files = [CAT]
    for i, image in enumerate(made_images(2)):
        files.append(tmp_path / f"made{i}.png")
        image.save(files[-1])
    model = az.create_model("autoformer_nano", pretrained=True)
    page.get_by_label("autoformer_nano, fp32").check()
    for file in files:
        page.set_input_files("#file", file)
        until(page, "#status", f"{file.name}: ")
        found = answers(page)
        expected = az.predict(model, file)[0]
        assert next(iter(found)) == expected[0].label
        for each in expected:
            assert found[each.label] == pytest.approx(100 * each.probability, abs=1)
    until(page, "#timing", r"[\d.]+ ms an image")


def test_page_takes_a_dropped_image_and_survives_a_broken_one(page: Any) -> None:
    given = [base64.b64encode(BROKEN).decode(), "broken.png"]
    page.evaluate(DROP, given)
    until(page, "#status.is-error", "broken.png cannot be read as an image")
    page.evaluate(DROP, [base64.b64encode(CAT.read_bytes()).decode(), "dropped.jpg"])
    until(page, "#status:not(.is-error)", "dropped.jpg: cat")


def test_page_measures_all_and_draws_points(page: Any) -> None:
    page.get_by_role("button", name="Measure all").click()
    until(page, "#status", "All networks are measured")
    assert page.locator("#plot title").count() == 2


def test_page_takes_the_webcam(page: Any) -> None:
    page.get_by_role("button", name="Use the webcam").click()
    until(page, "#answers .percent", r"\d")
    page.get_by_role("button", name="Stop the webcam").click()
    until(page, "#status", "The webcam is off")


def test_page_needs_no_mouse(page: Any) -> None:
    def tab_to(what: str) -> None:
        for _ in range(20):
            page.keyboard.press("Tab")
            if page.evaluate(f"document.activeElement.matches({what!r})"):
                return
        raise AssertionError(f"no {what} is reached by Tab")

    tab_to("#file")
    tab_to("#camera")
    tab_to("#sample")
    page.keyboard.press("Enter")
    until(page, "#status", "Sample image: cat")
    tab_to("input[name=file]")
    page.keyboard.press("ArrowRight")
    until(page, "#timing", "fp32")
    tab_to("#measure")


def test_page_fits_400_pixels_and_nothing_moves(narrow_page: Any) -> None:
    narrow_page.get_by_role("button", name="Sample image").click()
    until(narrow_page, "#timing", "ms an image")
    assert narrow_page.evaluate("document.documentElement.scrollWidth") <= 400
    assert narrow_page.evaluate(SHIFT) < 0.01


def test_page_works_offline(page: Any) -> None:
    for _ in range(PATIENCE // 100):
        if page.evaluate(STORED):
            break
        page.wait_for_timeout(100)
    page.context.set_offline(True)
    page.reload()
    until(page, "#status", "Ready")
    page.get_by_role("button", name="Sample image").click()
    until(page, "#status", "Sample image: cat")
    page.get_by_label("autoformer_nano, fp32").check()
    until(page, "#status.is-error", "go online once")


def test_app_answers_and_follows_the_sliders_by_keyboard(app_page: Any) -> None:
    app_page.set_input_files("input[type=file]", CAT)
    until(app_page, "#answer", "cat")
    until(app_page, "td", "3,192,202")
    app_page.get_by_role("slider").first.focus()
    app_page.keyboard.press("ArrowLeft")
    fewer = az.count_params(az.SubnetConfig.uniform(6, 192, 3, 4), 32, 4, 10)
    until(app_page, "td", f"{fewer:,}")


def test_app_reports_a_broken_image(app_page: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(BROKEN)
    app_page.set_input_files("input[type=file]", tmp_path / "broken.png")
    until(app_page, "body", "cannot be read as an image")


def test_app_fits_400_pixels(browser: Any, app: str) -> None:
    for page in open_page(browser, app, width=400):
        page.set_input_files("input[type=file]", CAT)
        until(page, "#answer", "cat")
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
