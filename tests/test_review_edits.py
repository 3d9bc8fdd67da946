"""Edits on the page in a real browser, in the order of a hand that is not careful."""

import pytest


@pytest.mark.parametrize("by_event", [True, False])
def test_a_window_moved_to_another_screen_draws_points_where_they_are(dataset, open_page, by_event):
    page = open_page(dataset)
    drawn = """
        const ratio = window.devicePixelRatio;
        const [x, y] = toScreen(view.image.points[3]);
        const copy = new OffscreenCanvas(1, 1).getContext("2d");
        copy.drawImage(marks, -Math.round(x * ratio), -Math.round(y * ratio));
        const pixel = copy.getImageData(0, 0, 1, 1).data;
        return [film.width / stage.clientWidth, marks.height / stage.clientHeight, pixel[3]]
    """
    for before, ratio in ((1, 1), (1, 2), (2, 1), (1, 1.5)):
        page.resize(1366, 768, ratio)
        if by_event:  # this browser sends none where the screen is only pretended
            assert page.run("return [window.devicePixelRatio, resolution.matches]") == [ratio, ratio == before]
            page.run("resolution.dispatchEvent(new Event('change'))")
        else:
            page.press("1", "1")
        page.draw()
        assert page.run(drawn) == pytest.approx([ratio, ratio, 255], rel=2e-3)
