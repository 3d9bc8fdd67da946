"""A browser and somebody who sits before it, for test_review.py and test_review_edits.py."""

import json
import re
import shutil
import subprocess
import sys
import time

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

from tools import review

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1366,768",
    "--disable-background-networking", "--no-first-run",
)  # fmt: skip


def major_version(program) -> str:
    """The number before the first dot of what a program calls its version."""
    words = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    return re.search(r"(\d+)\.\d+\.\d+", words).group(1)


def start_browser() -> webdriver.Chrome | None:
    """Chromium or Chrome without a window; none where none is installed that fits the driver."""
    driver = shutil.which("chromedriver")
    known = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    chrome = next((path for path in known if driver and major_version(path) == major_version(driver)), None)
    if chrome is None:
        return None
    options = webdriver.ChromeOptions()
    options.binary_location = chrome
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(driver))


class Page:
    """The page of a source, as somebody who sits before it uses it."""

    def __init__(self, browser, folder, *arguments, forget=True) -> None:
        self.browser, self.folder, self.out = browser, folder, folder / "page" / "review.html"
        sys.argv = ["review", *map(str, arguments), "--out", str(self.out)]
        assert review.main() == 0
        browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
        self.resize(1366, 768)
        self.look("light")
        if forget:
            self.forget()
        browser.get(self.out.as_uri())
        self.wait(lambda: self.run("return performance.getEntriesByName('ready').length"))

    def forget(self) -> None:
        """Empty the browser's storage, in which other tests have left their edits."""
        self.browser.execute_cdp_cmd(
            "Storage.clearDataForOrigin", {"origin": "file://", "storageTypes": "local_storage"}
        )

    def reload(self) -> None:
        """Load the page again, without being asked whether to leave it."""
        self.run("window.addEventListener('beforeunload', (event) => event.stopImmediatePropagation(), true)")
        self.browser.get(self.out.as_uri())
        self.wait(lambda: self.run("return performance.getEntriesByName('ready').length"))

    def run(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def wait(self, holds):
        end = time.monotonic() + 10
        while not (result := holds()):
            assert time.monotonic() < end, self.browser.get_log("browser")
            time.sleep(0.02)
        return result

    def find(self, selector):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector) -> list[str]:
        return [each.text for each in self.browser.find_elements(By.CSS_SELECTOR, selector)]

    def click(self, selector) -> None:
        self.find(selector).click()
        self.draw()

    def press(self, *keys) -> None:
        ActionChains(self.browser).send_keys(*keys).perform()
        self.draw()

    def draw(self) -> None:
        """Wait for the frame in which the page follows."""
        self.run("return new Promise(requestAnimationFrame)")

    def resize(self, width, height, ratio=1) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": ratio, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def look(self, theme) -> None:
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def at(self, landmark) -> tuple[int, int]:
        """Where a point lies on screen, from the middle of the radiograph."""
        script = "const [x, y] = toScreen(view.image.points[arguments[0]]);"
        script += "return [Math.round(x - marks.offsetWidth / 2), Math.round(y - marks.offsetHeight / 2)]"
        return tuple(self.run(script, landmark))

    def hover(self, landmark) -> str:
        ActionChains(self.browser, 0).move_to_element_with_offset(self.find("#marks"), *self.at(landmark)).perform()
        return self.find("#tip").text

    def drag(self, landmark, x, y) -> None:
        chain = ActionChains(self.browser, 0).move_to_element_with_offset(self.find("#marks"), *self.at(landmark))
        chain.click_and_hold().move_by_offset(x // 2, y // 2).move_by_offset(x - x // 2, y - y // 2).release().perform()
        self.draw()

    def click_film(self, x, y) -> None:
        """Click at a place in screen px from the middle of the radiograph."""
        ActionChains(self.browser, 0).move_to_element_with_offset(self.find("#marks"), x, y).click().perform()
        self.draw()

    def save(self) -> list[dict]:
        path = self.folder / "data.json"
        path.unlink(missing_ok=True)
        self.click("#save")
        self.wait(path.exists)
        return json.loads(path.read_text(encoding="utf-8"))
