// What the visitor sees. `state` holds the picture, the sentences and what is chosen; every change
// of it is followed by `update`, which asks the model all over again.

const $ = (id) => document.getElementById(id);
const { config, pieces, drawing, ...model } = JSON.parse($("model").textContent);
const patches = (config.image_size / config.patch_size) ** 2;
const state = { things: [], picture: null, word: 3, sentences: [], sentence: 0, first: -1 };
let params, seen, written, asked;

/** Children of `parent`, one an item, made of a template once: so focus stays where it is. */
function each(parent, template, items, show) {
  while (parent.children.length > items.length) parent.lastElementChild.remove();
  while (parent.children.length < items.length) {
    parent.append($(template).content.firstElementChild.cloneNode(true));
  }
  items.forEach((item, i) => show(parent.children[i], item, i));
}

/** The words in a row's children, and the part p from 0 to 1 as a bar. */
function say(row, p, ...words) {
  words.forEach((text, i) => (row.children[i].textContent = text));
  row.style.setProperty("--p", p);
}

const percent = (p) => (p < 5e-4 ? "<0.1 %" : `${(100 * p).toFixed(p < 0.0995 ? 1 : 0)} %`);
const named = (token) => (token === END ? "end" : pieces[token]);

function update() {
  update.waiting ??= requestAnimationFrame(() => {
    update.waiting = null;
    seen = encode_image(params, config, image_of(state, config.image_size, drawing));
    for (const show of [show_scene, show_caption, show_word, show_sentences, show_parts]) show();
  });
}

function show_scene() {
  draw_scene($("picture").getContext("2d"), state, drawing);
  each($("things"), "thing", state.things, (row, { size, colour, shape }) => {
    say(row, 1, `${size} ${colour} ${shape}`);
    row.lastElementChild.ariaLabel = `Remove ${size} ${colour} ${shape}`;
  });
}

function show_caption() {
  const temperature = Number($("temperature").value);
  const tokens = generate(params, config, seen.memory, temperature, state.uniforms);
  const [logits_TV, p_HTS] = caption_logits(params, config, seen.memory, tokens.slice(0, -1));
  const scaled_TV = logits_TV.map((row) => restrict_logits(row).map((x) => x / (temperature || 1)));
  const [p_TV, looked_TN] = [scaled_TV.map(softmax), looked_at(p_HTS, seen.pooled_QS, patches)];
  const chosen = Math.min(state.word, tokens.length - 2);
  written = { words: tokens.slice(1), chosen, p_V: p_TV[chosen], looked_N: looked_TN[chosen] };
  $("temperature-said").value = temperature || "0: always the likeliest word";
  each($("caption"), "word", written.words, (button, token, t) => {
    say(button, p_TV[t][token], named(token), percent(p_TV[t][token]));
    button.classList.toggle("end", token === END);
    button.ariaPressed = t === chosen;
  });
  clearTimeout(show_caption.pause); // a screen reader hears it once the visitor pauses
  const caption = `It says: ${written.words.map(named).join(" ")}`;
  show_caption.pause = setTimeout(() => ($("said").textContent = caption), 600);
}

/** The chosen word: what else it might have been, and where the model looked for it. */
function show_word() {
  const { words, chosen, p_V, looked_N } = written;
  const best = [...p_V.keys()].sort((a, b) => p_V[b] - p_V[a]).slice(0, 5);
  each($("rivals"), "rival", best, (row, token) => {
    say(row, p_V[token], named(token), percent(p_V[token]));
    row.classList.toggle("taken", token === words[chosen]);
  });
  const [most, across] = [Math.max(...looked_N), Math.sqrt(patches)];
  $("look").style.setProperty("--across", across);
  each($("look"), "patch", looked_N, (cell, p) => say(cell, p / most, p < 0.04 ? "" : percent(p)));
  const [row, column] = [looked_N.indexOf(most) / across, looked_N.indexOf(most) % across];
  const place = `row ${Math.floor(row) + 1}, column ${column + 1}`;
  $("chosen").textContent = words.slice(0, chosen + 1).map(named).join(" ");
  $("looked").textContent = `Looked at most: the patch in ${place}, ${percent(most)}.`;
}

function show_sentences() {
  const temperature = 10 ** Number($("contrast").value);
  asked = state.sentences.map(({ text, hidden }) => {
    const words = words_of(text, pieces);
    const tokens = encode(words, pieces, config.text_length);
    const places = $("cls").checked ? [...tokens.keys()] : hidden.map((w) => w + 1);
    const cosine = dot(seen.image_E, encode_text(params, config, tokens, places)[0]);
    return { words, cosine, log_p_T: log_likelihoods(params, config, seen.memory, tokens) };
  });
  const share = softmax(asked.map(({ cosine }) => cosine / temperature));
  each($("sentences"), "sentence", state.sentences, (row, { text }, i) => {
    const { words, cosine, log_p_T } = asked[i];
    const [input, scores, unseen] = row.children;
    if (input.value !== text) input.value = text;
    input.ariaLabel = `Sentence ${i + 1}`;
    row.classList.toggle("chosen", i === state.sentence);
    say(scores.children[0], Math.max(0, cosine), "cosine", cosine.toFixed(3));
    say(scores.children[1], share[i], "share", percent(share[i]));
    say(scores.children[2], Math.exp(sum(log_p_T)), "log-likelihood", sum(log_p_T).toFixed(2));
    const unknown = words.filter((word) => !pieces.includes(word)).join(", ");
    unseen.textContent = unknown && `It never saw: ${unknown}`;
  });
  $("contrast-said").value = temperature.toFixed(3);
}

/** The words of the chosen sentence, to exchange and to hide. */
function show_parts() {
  const { words, log_p_T } = asked[state.sentence];
  each($("parts"), "part", words, (part, word, w) => {
    const [exchange, hide] = part.children;
    const p = w < log_p_T.length - 1 ? Math.exp(log_p_T[w]) : 0;
    say(exchange, p, word, percent(p));
    exchange.ariaPressed = w === state.first;
    hide.ariaPressed = $("cls").checked || state.sentences[state.sentence].hidden.includes(w);
    hide.ariaLabel = `Hide “${word}” from CLS`;
  });
}
