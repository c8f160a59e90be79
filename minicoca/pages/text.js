// The decoupled text decoder: reference/text.py for one row of ids, padded or not.

const [PAD, START, END, UNKNOWN] = [0, 1, 2, 3]; // the ids that stand for no text: config.py

/** Token + position, and CLS at the end: [T + 1][D]. */
function text_embedding(tokens_T, params) {
  const x_TD = tokens_T.map((token, t) => add([params.token[token]], [params.position[t]])[0]);
  return [...x_TD, params.cls];
}

/** Ids -> [x [T][D] for the multimodal layers, normed CLS [D]]. */
function unimodal_decoder(tokens_T, params, config, hidden) {
  const length = tokens_T.filter((token) => token !== PAD).length;
  const mask_SS = text_mask(length, tokens_T.length, config.legacy_cls_mask, hidden);
  const layer = (x_SD, own) => block(x_SD, own, config.text_heads, config.gelu, mask_SS);
  const x_SD = Object.values(params.blocks).reduce(layer, text_embedding(tokens_T, params));
  return [x_SD.slice(0, -1), layer_norm(x_SD.slice(-1), params.norm)[0]];
}

/** Causal self-attention, cross-attention to the image, one MLP; `multimodal_mlps` 2 has another
    before the cross-attention. Returns [y, p_HTS of the cross-attention]. */
function multimodal_block(x_TD, memory_SM, params, config, mask_TT) {
  const heads = config.text_heads;
  [x_TD] = self_attention_layer(x_TD, params.norm_attention, params.attention, heads, mask_TT);
  if (params.inner_mlp) x_TD = mlp_layer(x_TD, params.norm_inner, params.inner_mlp, config.gelu);
  const cross = [params.norm_cross, params.norm_memory, params.cross, heads];
  const [y_TD, p_HTS] = cross_attention_layer(x_TD, memory_SM, ...cross);
  return [mlp_layer(y_TD, params.norm_mlp, params.mlp, config.gelu), p_HTS];
}

/** Unimodal outputs and image tokens -> [what the head reads [T][D], the last cross's p_HTS]. */
function multimodal_decoder(x_TD, memory_SM, params, config) {
  const mask_TT = causal_mask(x_TD.length);
  let p_HTS;
  for (const layer of Object.values(params.blocks)) {
    [x_TD, p_HTS] = multimodal_block(x_TD, memory_SM, layer, config, mask_TT);
  }
  return [layer_norm(x_TD, params.norm), p_HTS];
}
