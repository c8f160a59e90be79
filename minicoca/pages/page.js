// What the visitor sees. Every change of `state` is followed by `update`: the model is asked anew.

const $ = (id) => document.getElementById(id);
const { config, pieces, drawing, ...model } = JSON.parse($("model").textContent);
const across = config.image_size / config.patch_size; // patches of a row
const state = { things: [], picture: null, next: 0, word: 3, sentence: 0, first: -1, tokens: [] };
state.sentences = model.sentences.map((text) => ({ text, hidden: [] }));
let params, seen, asked;

/** Children of `parent`, one an item, made of a template once: so focus stays where it is. */
function each(parent, template, items, show) {
  while (parent.children.length > items.length) parent.lastElementChild.remove();
  const made = () => parent.appendChild($(template).content.firstElementChild.cloneNode(true));
  items.forEach((item, i) => show(parent.children[i] ?? made(), item, i));
}

/** The words in a row's children, and the part p from 0 to 1 as a bar. */
function say(row, p, ...words) {
  words.forEach((text, i) => (row.children[i].textContent = text));
  row.style.setProperty("--p", p);
}

const percent = (p) =>
  p < 1e-6 ? "<0.0001 %" : `${p < 0.1 ? +(100 * p).toPrecision(2) : Math.round(100 * p)} %`;
const named = (token) => (token === END ? "end" : pieces[token]);

function update() {
  update.waiting ??= requestAnimationFrame(() => {
    update.waiting = null;
    seen = encode_image(params, config, image_of(state, config.image_size, drawing));
    for (const show of [show_things, show_caption, show_sentences, show_parts]) show();
  });
}

function show_things() {
  draw_scene($("picture").getContext("2d"), state, drawing);
  const named_thing = ({ size, colour, shape }) => `${size} ${colour} ${shape}`;
  each($("things"), "thing", state.things, (row, thing) => say(row, 1, named_thing(thing)));
}

/** The caption; of its chosen word, what else it might have been, and where the model looked. */
function show_caption() {
  const temperature = Number($("temperature").value);
  state.tokens = generate(params, config, seen.memory, temperature, state.uniforms, state.tokens);
  const [before_T, words] = [state.tokens.slice(0, -1), state.tokens.slice(1)];
  const [logits_TV, p_HTS] = caption_logits(params, config, seen.memory, before_T);
  const scaled_TV = logits_TV.map((row) => restrict_logits(row).map((x) => x / (temperature || 1)));
  const p_TV = scaled_TV.map(softmax);
  const chosen = Math.min(state.word, words.length - 1);
  each($("caption"), "word", words, (button, token, t) => {
    say(button, p_TV[t][token], named(token), percent(p_TV[t][token]));
    button.classList.toggle("end", token === END);
    button.ariaPressed = t === chosen;
  });
  const likeliest = [...p_TV[chosen].keys()].sort((a, b) => p_TV[chosen][b] - p_TV[chosen][a]);
  each($("rivals"), "rival", likeliest.slice(0, 8), (row, token) => {
    say(row, p_TV[chosen][token], named(token), percent(p_TV[chosen][token]));
    row.classList.toggle("taken", token === words[chosen]);
  });
  const looked_N = looked_at(p_HTS, seen.pooled_QS, across * across)[chosen];
  const most = Math.max(...looked_N);
  const label = (p) => (p < 0.04 ? "" : percent(p));
  each($("look"), "patch", looked_N, (cell, p) => say(cell, p / most || 0, label(p)));
  const n = looked_N.indexOf(most);
  const place = `row ${Math.floor(n / across) + 1}, column ${(n % across) + 1}`;
  $("looked").textContent = `It looked most at the patch in ${place}: ${percent(most)}.`;
  $("chosen").textContent = words.slice(0, chosen + 1).map(named).join(" ");
  $("said").textContent = `It says: ${words.map(named).join(" ")}`; // to screen readers
  $("temperature-said").value = temperature || "0: the likeliest word";
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
    scores.ariaLive = i === state.sentence ? "polite" : "off"; // one is enough to be read aloud
    row.classList.toggle("chosen", i === state.sentence);
    say(scores.children[0], Math.max(0, cosine), "cosine", cosine.toFixed(3));
    say(scores.children[1], share[i], "share", percent(share[i]));
    say(scores.children[2], Math.exp(sum(log_p_T)), "log p", sum(log_p_T).toFixed(2));
    unseen.textContent = words.filter((word) => !pieces.includes(word)).join(", ");
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
