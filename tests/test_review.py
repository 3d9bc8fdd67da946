"""The page in a real browser: what it shows and what it saves. Further edits: test_review_edits.py."""

import io
import json
import math
import re
import shutil

import numpy as np
import pytest
from conftest import make_records, tiny_config, write_records
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select
from test_review_source import predicted

from evaluate import Verdict
from reading.annotation import read_annotation
from reading.splits import load_data


def read(folder) -> list[dict]:
    return json.loads((folder / "json" / "data.json").read_text(encoding="utf-8"))


def xy(record, landmark) -> tuple[float, float]:
    point = record["points"][landmark]
    return point["X"], point["Y"]


def worse_and_worse(folder, truth=True):
    """Predictions of folder that are off by 1 to 6 px of 0.5 mm in the six images, whose scores fall likewise."""
    off = np.arange(1, 7)
    return predicted(folder, shift=off, score=1 - off / 10, truth=truth)


def test_predictions_open_with_the_worst_image_first_and_errors_in_mm(dataset, open_page):
    page = open_page(worse_and_worse(dataset))
    assert page.texts("#images tbody button") == [f"image {n} (ä).png" for n in (5, 4, 3, 2, 1, 0)]
    assert page.texts("#images tbody td:nth-child(2)") == ["3.00", "2.50", "2.00", "1.50", "1.00", "0.50"]
    assert "image 5" in page.find("#caption").text
    page.click("#images th:nth-child(2) button")  # now the best first
    assert page.texts("#images tbody button")[0] == "image 0 (ä).png"
    page.find("#filter").send_keys("image 2")
    assert page.texts("#images tbody button") == ["image 2 (ä).png"]


def test_without_truth_the_lowest_score_comes_first(dataset, open_page):
    page = open_page(worse_and_worse(dataset, truth=False))
    assert page.texts("#images tbody td:nth-child(2)") == ["0.400", "0.500", "0.600", "0.700", "0.800", "0.900"]
    assert not page.find("#show-truth").is_displayed()
    page.click("#tab-all")
    assert page.texts("#summary tbody td:last-child") == ["image 5 (ä).png"] * 4


def test_rejected_images_come_first_with_their_reason_and_radii_are_drawn_on_demand(dataset, open_page):
    verdicts = [
        Verdict("good"),
        Verdict("check", "A is far off"),
        Verdict("reject", "mirrored?"),
        *[Verdict("good")] * 3,
    ]
    radius = {"radius_95": np.full((6, 4), 4.0)}
    page = open_page(predicted(dataset, verdicts=verdicts, extras=radius))
    assert page.texts("#images tbody td:nth-child(2)") == ["reject", "check", *["good"] * 4]
    assert page.find("#caption").text.endswith("reject: mirrored?")
    before = page.run("return marks.toDataURL()")
    page.press("5")
    assert page.find("#show-radius").is_selected()
    page.run("drawFrame()")
    assert page.run("return marks.toDataURL()") != before


def test_without_verdicts_and_radii_the_page_does_not_speak_of_them(dataset, open_page):
    page = open_page(worse_and_worse(dataset))
    assert not page.find("#show-radius").is_displayed() and "Verdict" not in page.texts("#images th button")


def test_the_table_of_all_images_tells_the_share_within_the_threshold(dataset, open_page):
    page = open_page(worse_and_worse(dataset))
    page.click("#tab-all")
    rows = [re.split(r"\s+", row) for row in page.texts("#summary tbody tr")]
    assert {tuple(row[1:6]) for row in rows} == {("6", "1.75", "67", "3.00", "image")}  # 4 of 6 within 2 mm
    page.press("j")
    assert "image 4" in page.find("#caption").text
    page.click("#summary tbody tr")  # where the largest error is
    assert "image 5" in page.find("#caption").text


def test_hovering_names_a_point(dataset, open_page):
    page = open_page(worse_and_worse(dataset))
    assert page.hover(2) == "A  point A\npredicted, error 3.00 mm, score 0.400"


@pytest.mark.parametrize("zooms", ["", "+++", "---"])
def test_a_dragged_point_moves_by_the_pointers_way_and_no_other_changes(dataset, open_page, zooms):
    page = open_page(dataset)
    page.run("chooseLandmark(3)")  # the keys zoom about it
    page.press(*zooms)
    page.hover(3)
    before, scale = page.run("return view.image.points"), page.run("return view.scale")
    number = page.run("return view.image.number")
    page.drag(3, -23, 14)
    after = page.save()
    x, y = xy(after[number], 3)
    assert (x, y) == pytest.approx((before[3][0] - 23 / scale, before[3][1] + 14 / scale), abs=0.006)
    expected = read(dataset)
    expected[number]["points"][3] |= {"X": x, "Y": y}
    assert after == expected
    assert read_annotation(page.folder / "data.json", dataset / "imgs")[2][number].name


def test_a_dragged_point_stays_inside_its_image(dataset, open_page):
    page = open_page(dataset)
    page.press("-----")
    page.drag(2, -600, -330)
    assert xy(page.save()[page.run("return view.image.number")], 2) == (-0.5, -0.5)
    load_data(tiny_config(dataset, json_path=str(page.folder / "data.json")))


def test_a_dot_lies_on_the_centre_of_its_pixel(tmp_path, open_page):
    records = make_records(tmp_path, 1, (48, 40))
    y, x = np.mgrid[:40, :48]
    blob = 255 * np.exp(-((x - 20) ** 2 + (y - 14) ** 2) / 8)  # its middle is the centre of pixel (20, 14)
    Image.fromarray(blob.astype(np.uint8)).save(tmp_path / "imgs" / records[0]["imagePath"])
    for point, place in zip(records[0]["points"], ((20, 14), (2, 30), (40, 30), (44, 35)), strict=True):
        point["X"], point["Y"] = place
    write_records(tmp_path, records)
    page = open_page(tmp_path)

    def centre(weight) -> np.ndarray:
        page.draw()
        shot = Image.open(io.BytesIO(page.find("#stage").screenshot_as_png)).convert("RGB")
        pixels = weight(np.asarray(shot, float))
        pixels[:20] = pixels[-20:] = 0  # the page behind the round corners
        rows, columns = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
        return np.array([(columns * pixels).sum(), (rows * pixels).sum()]) / pixels.sum()

    page.click("#show-points")
    bright = centre(lambda rgb: np.clip(rgb.min(-1) - 150, 0, None))
    page.click("#show-points")
    for landmark in range(1, 4):
        page.run("hideLandmark(arguments[0], true)", landmark)
    page.press(Keys.ESCAPE)
    blue = centre(lambda rgb: (rgb[..., 2] - rgb[..., 0] > 150).astype(float))
    assert page.run("return view.scale") > 10
    assert np.abs(blue - bright).max() < 0.5  # screen px, of more than ten that a pixel has


def test_hide_rename_nudge_and_drag_are_undone_and_redone_one_by_one(dataset, open_page):
    page = open_page(worse_and_worse(dataset))
    points = "return JSON.stringify(view.image.points)"
    states = [page.run(points)]
    page.drag(0, 30, 20)
    states.append(page.run(points))
    page.press("n")
    chosen = page.run("return view.chosen")
    before = page.run("return view.image.points[view.chosen]")
    page.press(Keys.ARROW_LEFT)
    states.append(page.run(points))
    ActionChains(page.browser).key_down(Keys.SHIFT).send_keys(Keys.ARROW_DOWN).key_up(Keys.SHIFT).perform()
    states.append(page.run(points))
    after = page.run("return view.image.points[view.chosen]")
    assert after == pytest.approx([before[0] - 1, before[1] + 10], abs=0.006)
    page.press("h")
    states.append(page.run(points))
    assert json.loads(states[-1])[chosen] is None
    page.press("h")  # shown again, where it was
    states.append(page.run(points))
    Select(page.find("#rename")).select_by_value(str((chosen + 1) % 4))
    page.click("#swap")
    states.append(page.run(points))
    old, new = json.loads(states[-2]), json.loads(states[-1])
    assert (new[chosen], new[(chosen + 1) % 4]) == (old[(chosen + 1) % 4], old[chosen])
    page.press("j")  # an edit of another image is undone there
    for state in reversed(states[:-1]):
        page.click("#undo")
        assert page.run(points) == state
    assert not page.find("#undo").is_enabled() and "•" not in page.texts("#images tbody button")[0]
    page.find("#marks").click()
    for state in states[1:]:
        ActionChains(page.browser).key_down(Keys.CONTROL).send_keys("y").key_up(Keys.CONTROL).perform()
        assert page.run(points) == state
    assert page.find("#changes").text and page.run("return document.title").startswith("* ")


def test_a_hidden_point_is_saved_as_missing_and_its_error_counts_no_more(dataset, open_page):
    page = open_page(worse_and_worse(dataset))
    for _ in range(2):
        page.press("n", "h")
    (row,) = (place for place, text in enumerate(page.texts("#images tbody tr")) if "image 5" in text)
    assert page.texts("#images tbody td:nth-child(2)")[row] == "3.00"
    assert len([text for text in page.texts("#landmarks tbody td:nth-child(3)") if text]) == 2
    saved = page.save()
    assert [xy(saved[5], landmark).count(None) for landmark in range(4)].count(2) == 2
    _, _, records = read_annotation(page.folder / "data.json", dataset / "imgs")
    assert int(np.isnan(records[5].landmarks).any(1).sum()) == 2


def test_errors_follow_a_dragged_point(dataset, open_page):
    page = open_page(worse_and_worse(dataset))
    page.click("#tab-all")
    page.drag(2, round(-6 * page.run("return view.scale")), 0)  # 6 px back onto the truth
    number = page.run("return view.image.number")
    error = page.run("return errorOf(view.image, 2)")
    assert error < 0.05 and f"{(9 + error) / 4:.2f}" == page.texts("#images tbody td:nth-child(2)")[0]
    row = next(text.split() for text in page.texts("#summary tbody tr") if text.split()[0] == "A")
    assert row[2] == f"{(0.5 + 1 + 1.5 + 2 + 2.5 + error) / 6:.2f}" and number == 5


def test_what_is_saved_unchanged_is_the_very_file(dataset, open_page):
    records = make_records(dataset)
    for number, record in enumerate(records):
        record |= {"split": "train" if number % 2 else "test1", "patient": 12345678901234567890, "spacing": 0.1}
        record["points"][number % 4] |= {"occluded": True, "X": 11, "note": ["</script>", {"a": None}]}
        record["points"][3] |= {"id": 12345678901234567890, "depth": 1.0, "Y": 9.0}
        record["points"].reverse() if number == 2 else None
    records[1]["points"][0] |= {"X": None, "Y": None}
    records[3]["points"][1] |= {"visible": False}
    write_records(dataset, records)
    expected = json.dumps(records, sort_keys=True)  # 1.0 is not 1 in it
    assert json.dumps(open_page(dataset).save(), sort_keys=True) == expected
    page = open_page(dataset, "--split", "train")
    assert json.dumps(page.save(), sort_keys=True) == expected  # those that are not shown too
    page.drag(3, 5, 5)
    number = page.run("return view.image.place")
    after = page.save()
    for own in (records[number]["points"][3], after[number]["points"][3]):
        own |= {"X": 0, "Y": 0}
    assert json.dumps(after, sort_keys=True) == json.dumps(records, sort_keys=True)  # nor other keys of what moved


def test_corrected_predictions_are_a_data_set_to_train_on(dataset, open_page):
    page = open_page(worse_and_worse(dataset))
    page.drag(1, 12, 7)
    assert page.run("const e = new Event('beforeunload', {cancelable: true}); return !window.dispatchEvent(e)")
    saved = page.save()
    assert not page.run("const e = new Event('beforeunload', {cancelable: true}); return !window.dispatchEvent(e)")
    data = load_data(tiny_config(dataset, json_path=str(page.folder / "data.json")))
    assert data.names == tuple(f"point {name}" for name in data.abbreviations) and len(saved) == 6
    assert xy(saved[0], 0)[0] == pytest.approx(xy(read(dataset)[0], 0)[0] + 1, abs=1e-4)


def test_a_predicted_point_outside_its_image_is_saved_at_the_edge(dataset, open_page):
    page = open_page(predicted(dataset, shift=60))
    page.save()
    data = load_data(tiny_config(dataset, json_path=str(page.folder / "data.json")))
    assert max(record.landmarks[:, 0].max() for record in data.records) == 95.5 and "edge" in page.find("#status").text


def test_the_page_of_a_real_run_saves_what_its_settings_accept(trained_run, open_page):
    page = open_page(trained_run)
    config = tiny_config(trained_run.parent, json_path=str(page.folder / "data.json"))
    assert len(page.save()) == len(load_data(config, for_training=False).records) == 1


def test_hostile_names_are_harmless(dataset, open_page):
    records = make_records(dataset)
    names = ['a"<b id=bad>.png', "<!--<script>.png", "{{data}}&amp;'`${1}.png"]
    for record, name in zip(records, names, strict=False):
        shutil.copy(dataset / "imgs" / records[5]["imagePath"], dataset / "imgs" / name)
        record["imagePath"] = name
    for record in records:
        record["points"][0]["pointName"] = "<b id=bad>"
        record["points"][1]["pointAbbreviation"] = '"></script><b id=bad>'
        record["split"] = "&lt;b id=bad&gt;"
    write_records(dataset, records)
    page = open_page(dataset)
    assert set(names) < set(page.texts("#images tbody button"))
    for _ in range(3):
        page.press("j", "n")
    page.hover(0)
    page.click("#tab-all")
    assert page.run("return document.querySelectorAll('#bad').length") == 0
    assert page.save() == records


def test_linked_images_stay_where_they_are(dataset, open_page):
    page = open_page(dataset, "--link")
    assert page.out.stat().st_size < 100_000 and page.run("return view.picture.naturalWidth") == 96
    assert page.run("return view.picture.src").startswith("file:")
    assert page.run("return document.querySelectorAll('script[id^=image-]').length") == 0


@pytest.mark.parametrize("size", [(1366, 768), (1366, 625), (1024, 600)])
def test_everything_fits_on_a_small_screen(dataset, open_page, size):
    page = open_page(worse_and_worse(dataset))
    page.resize(*size)
    page.press("n")
    overflow = """
        const page = document.scrollingElement;
        return [page.scrollWidth - page.clientWidth, page.scrollHeight - page.clientHeight]
    """
    assert page.run(overflow) == [0, 0]
    cut = """
        const all = document.querySelectorAll("header button, label, #chosen select, thead button");
        const outside = (box) => box.right > innerWidth || box.bottom > innerHeight;
        const isCut = (e) => outside(e.getBoundingClientRect()) || e.scrollWidth > e.clientWidth + 1;
        return [...all].filter((e) => e.offsetParent && isCut(e)).map((e) => e.textContent)
    """
    assert page.run(cut) == []
    assert page.run("return stage.clientWidth > 0.35 * innerWidth && stage.clientHeight > 0.7 * innerHeight")


def test_words_can_be_read_in_light_and_in_dark(dataset, open_page):
    page = open_page(worse_and_worse(dataset))
    page.press("n", "h")
    places = (
        "body", "#title", "#images td button", "#images tr[aria-current] td.number", "#landmarks tr.off td",
        "thead button", "#save", "#caption", "#status", "#chosen-place", "#chosen-name", "#help-button", "kbd", "#zoom",
    )  # fmt: skip
    script = """
        const style = (e) => getComputedStyle(e);
        const isClear = (e) => style(e).backgroundColor === "rgba(0, 0, 0, 0)";
        const ground = (e) => (isClear(e) ? ground(e.parentElement) : style(e).backgroundColor);
        return arguments[0].map((place) => document.querySelector(place)).map((e) => [style(e).color, ground(e)]);
    """

    def luminance(colour) -> float:
        channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    grounds = {}
    for theme in ("light", "dark"):
        page.look(theme)
        pairs = page.run(script, places)
        grounds[theme] = luminance(pairs[0][1])
        for place, pair in zip(places, pairs, strict=True):
            low, high = sorted(map(luminance, pair))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (theme, place, pair)
    assert grounds["light"] > 0.7 and grounds["dark"] < 0.05


def test_everything_is_reached_from_the_keyboard(dataset, open_page):
    page = open_page(worse_and_worse(dataset))
    page.press("?")
    assert page.find("#help").is_displayed()
    page.press("n", Keys.ESCAPE)  # a key in the dialog is not one of the page
    assert not page.find("#help").is_displayed() and page.run("return view.chosen") is None
    page.press(Keys.PAGE_DOWN)
    assert "image 4" in page.find("#caption").text and "image 4" in page.find("#images tr[aria-current=true]").text
    page.press("/", "image 3", Keys.ESCAPE, "k")
    assert "image 3" in page.find("#caption").text
    scale = page.run("return view.scale")
    page.press("++")
    assert math.isclose(page.run("return view.scale"), scale * 1.25**2)
    page.press("0", "1", "i")
    assert not page.find("#show-points").is_selected() and "invert" in page.run("return film.style.filter")
    unnamed = "return [...document.querySelectorAll('button, input, select, canvas[tabindex], table')].filter((e) =>"
    unnamed += " !(e.textContent.trim() || e.ariaLabel || (e.labels && e.labels[0]))).map((e) => e.outerHTML)"
    assert page.run(unnamed) == []
    page.browser.switch_to.active_element.send_keys("s")
    page.wait((page.folder / "data.json").exists)
