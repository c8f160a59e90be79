// What pages/__init__.py packed into the page: weights, and the tokenizer's words.
"use strict";

/** base64 -> the bytes that zlib made smaller. */
async function unpacked(text) {
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Four planes of bytes -> float32, bit for bit: each number was turned left by one bit, so that its
    exponent, which alone is worth compressing, has a plane of its own. */
function floats(bytes) {
  const count = bytes.length / 4;
  const bits = new Uint32Array(count);
  for (let plane = 0; plane < 4; plane++) {
    for (let i = 0; i < count; i++) bits[i] |= bytes[plane * count + i] << (8 * plane);
  }
  return new Float32Array(bits.map((x) => (x >>> 1) | (x << 31)).buffer);
}

/** Numbers and {"image.patch.weight": shape} -> params.image.patch.weight, as rows. */
function unflatten(numbers, shapes) {
  const tree = {};
  let at = 0;
  for (const [name, shape] of Object.entries(shapes)) {
    const path = name.split(".");
    const last = path.pop();
    const width = shape.at(-1) ?? 1;
    const rows = [...Array(shape.length > 1 ? shape[0] : 1)].map(() =>
      numbers.subarray(at, (at += width)),
    );
    const leaf = shape.length > 1 ? rows : shape.length ? rows[0] : rows[0][0];
    path.reduce((node, key) => (node[key] ??= {}), tree)[last] = leaf;
  }
  return tree;
}

/** words.py: Unicode NFC, single spaces, nothing that is no text or cannot be seen. */
function clean(text) {
  const composed = text.replace(/[\p{Cs}\ufdd0-\ufdef]/gu, "").normalize("NFC");
  const words = composed.split(/[\s\x1c-\x1f\x85]+/u).filter(Boolean).join(" ");
  return /[^\p{Cc}\p{Cf}\p{Zs}]/u.test(words) ? words : "";
}

const words_of = (text) => clean(text).split(" ").filter(Boolean);

/** Start, a token for each word, end. Neighbours that the model never saw are one unknown token. */
function encode(words, pieces, length) {
  const ids = words.map((word) => (pieces.includes(word) ? pieces.indexOf(word) : UNKNOWN));
  const kept = ids.filter((id, i) => id !== UNKNOWN || ids[i - 1] !== UNKNOWN);
  return [START, ...kept.slice(0, length - 2), END];
}
