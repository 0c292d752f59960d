import numpy as np
from PIL import Image

from blip.report.heatmap import BAR, GAP, MIN_SIDE, draw_heatmaps

IMAGE = np.full((64, 64, 3), 100, np.uint8)


def test_a_panel_is_bright_where_its_map_is_high(tmp_path):
    left, right, blank = (np.zeros((4, 4), np.float32) for _ in range(3))
    left[:, 0], right[:, 3] = 0.3, 7.0
    draw_heatmaps(IMAGE, [("left", left), ("right", right), ("none", blank)], tmp_path / "a.png")
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    assert sheet.shape == (MIN_SIDE + BAR, 3 * MIN_SIDE + 2 * GAP, 3)
    panels = [sheet[BAR:, start : start + MIN_SIDE] for start in range(0, 3 * 164, 164)]
    bright = [[int(p[80, x].min()) for x in (5, -5)] for p in panels]
    assert bright[0][0] > 200 and bright[0][1] == 100  # noqa: PT018
    assert bright[1][0] == 100 and bright[1][1] > 200  # noqa: PT018
    assert (panels[2] == 100).all()
    assert (sheet[:BAR] < 128).any()  # the words


def test_panels_wrap_and_long_words_are_cut(tmp_path):
    panels = [("w" * 500, np.ones((4, 4), np.float32))] * 6
    draw_heatmaps(np.full((200, 200, 3), 9, np.uint8), panels, tmp_path / "new" / "a.png")
    with Image.open(tmp_path / "new" / "a.png") as sheet:
        assert sheet.size == (4 * 200 + 3 * GAP, 2 * (200 + BAR) + GAP)
        between = np.asarray(sheet)[:BAR, 200 : 200 + GAP]
    assert (between == 255).all()
