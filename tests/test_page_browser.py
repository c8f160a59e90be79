"""The page in a browser: its numbers are NumPy's, and what a visitor does has its effect."""

import base64

import numpy as np
import pytest
from javascript import in_browser, needs_browser
from test_page import CLOSE, pictures, shapes_model

from minicoca.config import preset
from minicoca.data import shapes
from minicoca.pages.page import page
from minicoca.params import initialise
from minicoca.reference import ops
from minicoca.reference.generate import CoCa, normalise
from minicoca.reference.model import encode_image, encode_text
from minicoca.reference.text import multimodal_decoder

pytestmark = [needs_browser, pytest.mark.extras, pytest.mark.slow]
COUNT = 100


@pytest.fixture(scope="module")
def html():
    return page(*shapes_model(), "shapes")


def test_a_hundred_pictures_have_numpys_numbers(html):
    """Logits, cosines and captions, of scenes with colours and shapes never seen together."""
    params, config, tokenizer = shapes_model()
    images, texts = map(list, pictures(COUNT, "compositional"))
    tokens = tokenizer.encode(texts, config.text_length)
    said = in_browser(
        html,
        """return given.images.map((bytes, i) => {
          const image = Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt(0));
          const { image_E, memory } = encode_image(params, config, image);
          const [text_E] = encode_text(params, config, given.tokens[i]);
          const [logits] = caption_logits(params, config, memory, given.tokens[i].slice(0, -1));
          const written = generate(params, config, memory);
          return { cosine: dot(image_E, text_E), logits, written };
        });""",
        images=[base64.b64encode(image.tobytes()).decode() for image in images],
        tokens=[row[row != 0].tolist() for row in tokens],
    )
    image_BE, memory, _ = encode_image(params, config, normalise(np.stack(images), config))
    text_BE, x, _ = encode_text(params, config, tokens)
    n, _ = multimodal_decoder(x[:, :-1], memory, params["decoder"], config)
    logits, _ = ops.linear(n, params["decoder"]["head"])
    written = CoCa(params, config).generate(np.stack(images))
    assert len(said) == COUNT
    for i, one in enumerate(said):
        length = len(one["logits"])
        assert length == (tokens[i] != 0).sum() - 1
        np.testing.assert_allclose(one["logits"], logits[i, :length], rtol=0, atol=CLOSE)
        assert one["cosine"] == pytest.approx(image_BE[i] @ text_BE[i], abs=CLOSE)
        assert one["written"] == written[i][written[i] != 0].tolist()


def test_what_the_page_draws_is_what_training_drew(html):
    """Its scenes, drawn by the canvas, have the right captions."""
    _, _, tokenizer = shapes_model()
    said = in_browser(
        html,
        """return model.scenes.slice(1).map((things) => {
          const image = image_of({ things, picture: null }, config.image_size, drawing);
          return generate(params, config, encode_image(params, config, image).memory);
        });""",
    )
    truths = [shapes.caption(scene) for scene in shapes.scenes("held_out", len(said))]
    right = sum(tokenizer.decode(ids) == truth for ids, truth in zip(said, truths, strict=True))
    assert right >= 0.95 * len(truths)


def test_a_visitor_with_a_keyboard(html):
    said = in_browser(
        html,
        """const log = [];
        const note = async () => { await drawn(); log.push($("said").textContent); };
        const press = (target, key) =>
          target.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
        await note();
        $("clear").click();
        for (const name of ["heart", "pink", "large"]) {
          document.querySelector(`[value=${name}]`).click();
        }
        $("place").click();
        await note();
        for (let i = 0; i < 8; i++) press($("things").querySelector("button"), "ArrowRight");
        await note();
        press($("things").querySelector("button"), "Delete");
        await drawn();
        return { log, things: state.things.length, focus: document.activeElement.id };""",
    )
    assert said["log"] == [
        "It says: a large red star left of a small blue ring end",
        "It says: a large pink heart on the left end",
        "It says: a large pink heart in the middle end",
    ]
    assert said["things"] == 0 and said["focus"] == "place"


def test_sentences_words_heads_and_temperatures(html):
    said = in_browser(
        html,
        """const set = (input, value) => {
          input.value = value;
          input.dispatchEvent(new Event("input", { bubbles: true }));
        };
        const rows = async () => {
          await drawn();
          const shown = [...$("sentences").children].map((row) =>
            [...row.querySelectorAll("dd"), row.lastElementChild].map((one) => one.textContent));
          const first = $("sentences").querySelector("textarea").value;
          return { shown, first, said: $("said").textContent };
        };
        const found = { start: await rows() };
        $("parts").children[2].firstElementChild.click();
        $("parts").children[8].firstElementChild.click();
        found.exchanged = await rows();
        $("parts").children[2].lastElementChild.click();
        found.hidden = await rows();
        $("cls").click();
        found.masked = await rows();
        $("cls").click();
        set($("sentences").querySelectorAll("textarea")[1], "an elephant left of a ring");
        set($("contrast"), 0);
        found.typed = await rows();
        document.querySelectorAll('[data-of$="0.cross"]').forEach((head) => head.click());
        found.blind = await rows();
        found.looked = [...$("look").children].map((cell) => cell.style.getPropertyValue("--p"));
        $("all-on").click();
        found.again = await rows();
        set($("temperature"), 10);
        found.hot = await rows();
        return found;""",
    )
    start, exchanged, hidden, masked = (
        said[name]["shown"] for name in ("start", "exchanged", "hidden", "masked")
    )
    assert said["exchanged"]["first"] == "a large blue star left of a small red ring"
    assert float(start[0][0]) > float(exchanged[0][0]) and start[1:] != exchanged[1:]
    assert hidden[0][0] != exchanged[0][0] and hidden[0][2] == exchanged[0][2]
    assert len({row[0] for row in masked}) == 1 and [r[2] for r in masked] == [r[2] for r in hidden]
    assert said["typed"]["shown"][1][3] == "an elephant"
    shares = [float(row[1].removesuffix(" %")) for row in said["typed"]["shown"]]
    assert max(shares) < 60 and sum(shares) == pytest.approx(100, abs=2)
    assert said["blind"]["said"] != said["start"]["said"] == said["again"]["said"]
    assert set(said["looked"]) == {"0"}
    assert said["hot"]["said"] != said["start"]["said"]


def test_it_fits_a_phone_and_says_what_everything_is(html):
    """In a frame as wide as a phone: no sideways scrolling, nothing to press under 44 pixels, and
    every control has a name."""
    said = in_browser(
        html,
        """const frame = document.createElement("iframe");
        Object.assign(frame, { width: 390, height: 844, srcdoc: given.html });
        document.body.append(frame);
        await new Promise((done) => (frame.onload = done));
        const inside = frame.contentDocument;
        await until(() => inside.querySelector(".word"));
        frame.width = 780 - inside.documentElement.clientWidth; // a phone's bar lies over the page
        const controls = [...inside.querySelectorAll("button, textarea, input, .button")];
        const name = (one) => one.ariaLabel || one.labels?.[0]?.textContent || one.textContent;
        const box = (one) => one.getBoundingClientRect();
        const boxed = "input[type=file], input[type=checkbox]"; // their labels are pressed
        const pressed = controls.filter((one) => !one.matches(boxed));
        return { scrolls: inside.documentElement.scrollWidth,
          words: inside.querySelectorAll(".word").length,
          unnamed: controls.filter((one) => !name(one).trim()).map((one) => one.outerHTML),
          sentences: [...inside.querySelectorAll("textarea")].map(name),
          aloud: [...inside.querySelectorAll("dl")].map((one) => one.ariaLive),
          first: inside.querySelector(".word").textContent,
          small: pressed.filter((one) => box(one).height < 44 || box(one).width < 44)
            .map((one) => `${one.outerHTML} ${box(one).width} x ${box(one).height}`) };""",
        html=html.decode(),
    )
    assert said["words"] > 10 and said["scrolls"] <= 390
    assert said["unnamed"] == [] and said["small"] == []
    assert said["sentences"] == [f"Sentence {i + 1}" for i in range(3)]
    assert said["aloud"] == ["polite", "off", "off"] and said["first"].startswith("a ")


@pytest.mark.parametrize("pooler", ["cascade", "shared"])
def test_other_models_have_a_page(pooler):
    """One with queries between picture and words, of data that nobody knows here."""
    sizes = dict(pooler=pooler, caption_queries=6, stem="clip", data="own", vocabulary=36)
    config = preset("tiny", **sizes, image_width=32, text_width=32, image_hidden=64)
    made = page(initialise(config), config, shapes_model()[2], "own")
    assert b"trained on other pictures" in made
    said = in_browser(
        made,
        """await drawn();
        return { words: $("caption").children.length, sentences: asked.length,
          looked: [...$("look").children].map((cell) => cell.style.getPropertyValue("--p")),
          heads: [...heads].map((head) => head.dataset.of), trouble: $("trouble").textContent };""",
    )
    assert said["words"] > 0 and said["sentences"] == 3 and said["trouble"] == ""
    assert len(said["looked"]) == config.patches and max(map(float, said["looked"])) == 1
    path = "pooler.shared.attention" if pooler == "shared" else "pooler.caption.attention"
    assert said["heads"].count(path) == config.pooler_heads
