"""The report in a browser: it fits a phone and a wide window, and every picture opens."""

import pytest
from javascript import in_browser, needs_browser
from test_report import here, inside, written  # noqa: F401 - fixtures

pytestmark = [needs_browser, pytest.mark.extras, pytest.mark.slow]
LOOK = """
const found = {};
for (const width of given.widths) {
  const frame = document.createElement("iframe");
  Object.assign(frame, { width, height: 900, srcdoc: given.html });
  document.body.append(frame);
  await new Promise((done) => (frame.onload = done));
  const inside = frame.contentDocument, root = inside.documentElement;
  frame.width = 2 * width - root.clientWidth; // a phone's bar lies over the page
  const own = [...inside.querySelectorAll("img")];
  inside.querySelectorAll("details").forEach((one) => (one.open = true));
  const spills = [...inside.querySelectorAll("main *")].filter((one) => {
    const box = one.getBoundingClientRect();
    return box.right > root.clientWidth + 1 && !one.closest(".wide");
  });
  found[width] = {
    scrolls: root.scrollWidth - root.clientWidth,
    spills: spills.map((one) => one.outerHTML.slice(0, 200)),
    broken: own.filter((one) => !one.naturalWidth).length, pictures: own.length,
    boxes: inside.querySelectorAll(".wide").length,
    sides: [...inside.querySelectorAll(".sides")].map((one) =>
      new Set([...one.children].map((side) => side.getBoundingClientRect().left)).size),
  };
}
return found;
"""


@pytest.mark.parametrize("names", ["a", "ab"])
def test_it_fits_a_phone_and_a_wide_window(here, capsys, names):  # noqa: F811
    html, _ = written(capsys, *(here / name for name in names))
    page = b"<!doctype html><body><script>window.ready = true</script></body>"
    found = in_browser(page, LOOK, html=html, widths=[360, 1280])
    for width, own in found.items():
        assert (own["scrolls"], own["spills"]) == (0, []), width
        assert own["broken"] == 0 and own["pictures"] > 50 * len(names) and own["boxes"] > 5
        assert set(own["sides"]) == (({1} if width == "360" else {2}) if len(names) > 1 else set())
