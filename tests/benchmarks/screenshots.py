"""Makes the pictures of the README: report.png, comparison.png, tensorboard.png and terminal.png in this folder.

python tests/benchmarks/screenshots.py        # trains on samples/ twice; needs chromium and chromium-driver
"""

import base64
import html
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from selenium import webdriver

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
WIDTH = 1200
TERMINAL = """<body style="margin: 0; padding: 24px; background: #16181c; color: #e6e7ea">
<pre style="font: 15px/1.45 monospace; margin: 0; white-space: pre-wrap">%s</pre></body>"""


def run(*command: str, cwd: Path) -> str:
    """Runs a script of the repository in a folder. Returns the command and what it prints, as a terminal shows it."""
    arguments = [sys.executable, ROOT / command[0], *command[1:]]
    printed = subprocess.run(arguments, cwd=cwd, check=True, capture_output=True, text=True).stdout
    return f"$ python {shlex.join(command)}\n{printed}"


def open_browser() -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("headless", "no-sandbox", "disable-gpu", "hide-scrollbars"):
        options.add_argument(f"--{flag}")
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))


def shoot(browser, url: str, name: str, max_height: int, wait: float = 0) -> None:
    """Saves the top of a page, at most max_height pixels."""
    browser.set_window_size(WIDTH, max_height)
    browser.get(url)
    time.sleep(wait)
    height = browser.execute_script("return Math.min(innerHeight, document.documentElement.scrollHeight)")
    clip = {"x": 0, "y": 0, "width": WIDTH, "height": height, "scale": 1}
    picture = browser.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip})["data"]
    (FOLDER / name).write_bytes(base64.b64decode(picture))


def shoot_tensorboard(browser, runs: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "tensorboard.main", "--logdir", runs, "--port", str(port)])
    try:
        time.sleep(30)  # until it serves
        shoot(
            browser, f"http://127.0.0.1:{port}/?tagFilter=eval%2Ff1%7Ctrain#timeseries", "tensorboard.png", 860, wait=30
        )
    finally:
        server.kill()
        server.wait()


def main() -> None:
    browser = open_browser()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "samples").symlink_to(ROOT / "samples")
        printed = run("train.py", "--logging_steps", "50", cwd=folder)
        printed += "\n" + run("infer.py", "outputs", "Maria Santos met Sylvain in Oslo.", cwd=folder)
        run("train.py", "--output_dir", "outputs_seed43", "--seed", "43", cwd=folder)
        run("metrics.py", "outputs", "outputs_seed43", cwd=folder)
        shoot(browser, (folder / "outputs" / "report.html").as_uri(), "report.png", 1060)
        shoot(browser, (folder / "comparison.html").as_uri(), "comparison.png", 1000)
        (folder / "terminal.html").write_text(TERMINAL % html.escape(printed), encoding="utf-8")
        shoot(browser, (folder / "terminal.html").as_uri(), "terminal.png", 1000)
        shoot_tensorboard(browser, folder)
    browser.quit()


if __name__ == "__main__":
    main()
