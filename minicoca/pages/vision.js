// The image encoder and the poolers: reference/vision.py and reference/pooling.py for one image.

/** Bytes (I x I x 3) -> numbers of about zero mean and unit variance. */
const normalise = (image, { pixel_mean, pixel_std }) =>
  Float64Array.from(image, (byte, i) => (byte / 255 - pixel_mean[i % 3]) / pixel_std[i % 3]);

/** I x I x 3 -> [N][P]: patches row by row, each flattened as (row, column, channel). */
function patchify(image_II3, side, patch_size) {
  const grid = [...Array(side / patch_size).keys()].map((i) => i * patch_size);
  return grid.flatMap((top) =>
    grid.map((left) => {
      const patch_P = new Float64Array(patch_size * patch_size * 3);
      for (let row = 0; row < patch_size; row++) {
        const from = ((top + row) * side + left) * 3;
        patch_P.set(image_II3.subarray(from, from + patch_size * 3), row * patch_size * 3);
      }
      return patch_P;
    }),
  );
}

/** One linear map of every patch, and where it was: [N (+ 1 class token)][D]. */
function patch_embedding(image_II3, params, { image_size, patch_size }) {
  let x_SD = linear(patchify(image_II3, image_size, patch_size), params.patch);
  if (params.class) x_SD.unshift(params.class);
  x_SD = add(x_SD, params.position);
  return params.norm_pre ? layer_norm(x_SD, params.norm_pre) : x_SD;
}

/** An image (normalised) to image tokens [S][D]. */
function image_encoder(image_II3, params, config) {
  const layer = (x_SD, own) => block(x_SD, own, config.image_heads, config.gelu);
  return Object.values(params.blocks).reduce(layer, patch_embedding(image_II3, params, config));
}

/** [S][M] -> [[Q][D], p_HQS]: learned queries ask, image tokens answer. */
function attentional_pooler(tokens_SM, params, heads) {
  const q_QD = layer_norm(params.queries, params.norm_query);
  const k_SM = layer_norm(tokens_SM, params.norm_key);
  const [pooled_QD, p_HQS] = multi_head_attention(q_QD, k_SM, params.attention, heads);
  return [layer_norm(pooled_QD, params.norm_output), p_HQS];
}

/** Image tokens -> [contrast [D], memory for the decoder, pooled_QS]: the last is what each row of
    memory read of the image tokens, averaged over heads. */
function pool(tokens_SM, params, { pooler: mode, pooler_heads: heads }) {
  if (mode === "shared") {
    const [y_QD, p_HQS] = attentional_pooler(tokens_SM, params.shared, heads);
    return [y_QD[0], y_QD.slice(1), mean_of(p_HQS).slice(1)];
  }
  const same = [tokens_SM, [tokens_SM.map((_, q) => tokens_SM.map((_, s) => Number(s === q)))]];
  const [memory, p_HQS] =
    mode === "none" ? same : attentional_pooler(tokens_SM, params.caption, heads);
  const read = mode === "cascade" ? memory : tokens_SM;
  const [y_1D] = attentional_pooler(read, params.contrast, heads);
  return [y_1D[0], memory, mean_of(p_HQS)];
}
