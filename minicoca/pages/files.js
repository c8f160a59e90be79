// What page.py packed into the page: weights, and the tokenizer's words.

/** base64 -> the bytes that zlib made smaller. */
async function unpacked(text) {
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Response(packed).body.pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Four planes of bytes -> float32; each was turned left by a bit, so exponents have one plane. */
function floats(bytes) {
  const count = bytes.length / 4;
  const bits = new Uint32Array(count);
  bytes.forEach((byte, i) => (bits[i % count] |= byte << (8 * Math.floor(i / count))));
  return Float64Array.from(new Float32Array(bits.map((x) => (x >>> 1) | (x << 31)).buffer));
}

/** Numbers and {"image.patch.weight": shape} -> params.image.patch.weight, as rows. */
function unflatten(numbers, shapes) {
  const tree = {};
  let at = 0;
  for (const [name, shape] of Object.entries(shapes)) {
    const [width, count] = [shape.at(-1) ?? 1, shape.length > 1 ? shape[0] : 1];
    const rows = Array.from({ length: count }, () => numbers.subarray(at, (at += width)));
    const [last, ...path] = name.split(".").reverse();
    const node = path.reduceRight((node, key) => (node[key] ??= {}), tree);
    node[last] = [rows[0][0], rows[0], rows][shape.length];
  }
  return tree;
}

/** words.py: Unicode NFC, single spaces, nothing that is no text or cannot be seen. */
function clean(text) {
  const composed = text.replace(/[\p{Cs}\ufdd0-\ufdef]/gu, "").normalize("NFC");
  const words = composed.split(/[\s\x1c-\x1f\x85]+/u).filter(Boolean).join(" ");
  return /[^\p{Cc}\p{Cf}\p{Zs}]/u.test(words) ? words : "";
}

/** The words of a text; neighbours that the model never saw are one. */
function words_of(text, pieces) {
  const words = [];
  for (const word of clean(text).split(" ").filter(Boolean)) {
    const joined = words.length && !pieces.includes(word) && !pieces.includes(words.at(-1));
    words.push(joined ? `${words.pop()} ${word}` : word);
  }
  return words;
}

/** Start, a token for each word, end. */
function encode(words, pieces, length) {
  const ids = words.map((word) => (pieces.includes(word) ? pieces.indexOf(word) : UNKNOWN));
  return [START, ...ids.slice(0, length - 2), END];
}
