// What the visitor does: with a pointer, by keys, with a picture dropped on the page.

/** A handler of events that changes the state, unless it gives false. */
const changing = (act) => (event) => act(event) !== false && update();
/** `act(index of the child, event)` for events inside the children of an element. */
const on = (id, type, act) => $(id).addEventListener(type, changing((event) => {
  const child = [...$(id).children].findIndex((one) => one.contains(event.target));
  return child >= 0 && act(child, event);
}));

const over = ([row, column]) => (one) =>
  Math.hypot(one.row - row, one.column - column) < drawing.sizes[one.size];
function add_thing([row, column]) {
  state.things.push({ ...Object.fromEntries(new FormData($("tools"))), row, column });
  return state.things.at(-1);
}

/** The thing under the pointer, or a new one there, follows it; off the picture it is removed. */
function follow(event) {
  const box = $("stage").getBoundingClientRect();
  const at = (e) => [(e.clientY - box.top) / box.height, (e.clientX - box.left) / box.width];
  const inside = (one) => Math.min(one.row, one.column, 1 - one.row, 1 - one.column) >= 0;
  const thing = state.things.findLast(over(at(event))) ?? add_thing(at(event));
  $("stage").setPointerCapture(event.pointerId);
  $("stage").onpointermove = changing((e) => e.buttons > 0 && ([thing.row, thing.column] = at(e)));
  $("stage").onpointerup = changing(() => (state.things = state.things.filter(inside)));
}

/** Arrow keys move a thing, Delete or its button removes it. */
function press_thing(i, event) {
  const step = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1 }[event.key];
  const pressed = event.type === "click" && event.target.matches(".remove");
  if (!step && !pressed && !["Delete", "Backspace"].includes(event.key)) return false;
  event.preventDefault(); // the page would scroll
  if (!step) return $("place").focus(state.things.splice(i, 1));
  const [thing, axis] = [state.things[i], /Up|Down/.test(event.key) ? "row" : "column"];
  thing[axis] = Math.min(1, Math.max(0, thing[axis] + step / 32));
}

function write_sentence(i, text) {
  state.sentences[i] = { text, hidden: [] };
  Object.assign(state, { sentence: i, first: -1 });
}

/** Hide a word from CLS, or exchange it with the one that was pressed before. */
function press_part(w, { target }) {
  const [{ words }, { hidden }] = [asked, state.sentences].map((all) => all[state.sentence]);
  if (target.closest(".hide")) {
    hidden.splice(...(hidden.includes(w) ? [hidden.indexOf(w), 1] : [0, 0, w]));
  } else if (state.first < 0) {
    state.first = w;
  } else {
    [words[state.first], words[w]] = [words[w], words[state.first]];
    write_sentence(state.sentence, words.join(" "));
  }
}

const heads = document.querySelectorAll("#heads button");
function turn_head(button, off = button.ariaPressed === "true") {
  const attention = button.dataset.of.split(".").reduce((node, key) => node[key], params);
  (attention.off ??= [])[button.value] = off;
  button.ariaPressed = !off;
}

const show_picture = (picture, things = []) => Object.assign(state, { picture, things });
async function open_picture(file) {
  const picture = await createImageBitmap(file).catch(() => null);
  $("trouble").textContent = picture ? "" : `This browser cannot open ${file.name} as a picture.`;
  if (picture) update(show_picture(picture));
}

const BUTTONS = {
  place: () => add_thing(model.seats.find((seat) => !state.things.some(over(seat))) ?? [0.5, 0.5]),
  next: () => show_picture(null, structuredClone(model.scenes[state.next++ % model.scenes.length])),
  clear: () => show_picture(null),
  again: () => (state.uniforms = Array.from({ length: config.text_length }, Math.random)),
  "all-on": () => heads.forEach((head) => turn_head(head, false)),
};

async function start() {
  params = unflatten(floats(await unpacked(model.numbers)), model.shapes);
  for (const id of ["temperature", "contrast", "cls"]) $(id).oninput = update;
  for (const [id, act] of Object.entries(BUTTONS)) $(id).onclick = changing(act);
  for (const type of ["keydown", "click"]) on("things", type, press_thing);
  on("caption", "click", (t) => (state.word = t));
  on("sentences", "input", (i, { target }) => write_sentence(i, target.value));
  on("sentences", "focusin", (i) => Object.assign(state, { sentence: i, first: -1 }));
  on("parts", "click", press_part);
  for (const head of heads) head.onclick = changing(() => turn_head(head));
  $("stage").onpointerdown = changing(follow);
  $("file").onchange = document.ondrop = document.ondragover = (event) => {
    event.preventDefault();
    const [file] = (event.dataTransfer ?? event.target).files;
    if (file) open_picture(file);
  };
  BUTTONS.again();
  changing(BUTTONS.next)();
}

const failed = ({ message }) => `This browser cannot run the model (${message}).`;
start().catch((error) => ($("trouble").textContent = failed(error)));
