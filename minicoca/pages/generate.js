// CoCa whole, and what it is asked: reference/model.py, decoding.py and generate.py, for one image.

/** Project (where the config has a shared width) and scale to length 1. */
const embed = (features_D, params, projection) =>
  l2_normalise(params[projection] ? linear([features_D], params[projection])[0] : features_D);

/** Bytes -> {image_E: unit embedding, memory: tokens for the decoder, pooled_QS: see pool}. */
function encode_image(params, config, image) {
  const tokens_SM = image_encoder(normalise(image, config), params.image, config);
  const [contrast_D, memory, pooled_QS] = pool(tokens_SM, params.pooler, config);
  return { image_E: embed(contrast_D, params, "image_projection"), memory, pooled_QS };
}

/** Ids -> [unit embedding [E], token outputs [T][D]]. `hidden`: see text_mask. */
function encode_text(params, config, tokens_T, hidden) {
  const [x_TD, cls_D] = unimodal_decoder(tokens_T, params.text, config, hidden);
  return [embed(cls_D, params, "text_projection"), x_TD];
}

/** What follows each token: [logits [T][V], p_HTS of the last cross-attention]. */
function caption_logits(params, config, memory, tokens_T) {
  const [, x_TD] = encode_text(params, config, tokens_T);
  const [n_TD, p_HTS] = multimodal_decoder(x_TD, memory, params.decoder, config);
  return [linear(n_TD, params.decoder.head), p_HTS];
}

/** Padding, start and unknown are never written. */
const restrict_logits = (logits_V) =>
  logits_V.map((logit, token) => ([PAD, START, UNKNOWN].includes(token) ? -Infinity : logit));

/** A token: at temperature 0 the likeliest, else where `uniform` falls (past rounding: the end). */
function draw(logits_V, temperature, uniform) {
  if (temperature === 0) return logits_V.indexOf(Math.max(...logits_V));
  const p_V = softmax(logits_V.map((logit) => logit / temperature));
  return Math.max(END, p_V.findIndex((p) => (uniform -= p) < 0));
}

/** The ids of a caption. uniforms: of each place a number from 0 to 1, for a temperature above 0.
    guess: one near it. What of it comes again is read at once, since no token sees later ones. */
function generate(params, config, memory, temperature = 0, uniforms = [], guess = []) {
  const tokens_T = [START];
  while (tokens_T.length < config.text_length && tokens_T.at(-1) !== END) {
    const tried_T = [...tokens_T, ...guess.slice(tokens_T.length, -1)];
    const [logits_TV] = caption_logits(params, config, memory, tried_T);
    do {
      const logits_V = restrict_logits(logits_TV[tokens_T.length - 1]);
      tokens_T.push(draw(logits_V, temperature, uniforms[tokens_T.length]));
    } while (tokens_T.at(-1) === tried_T[tokens_T.length - 1]);
  }
  return tokens_T;
}

/** log P(y_t | y_<t, image) of every token but the first: what Eq. 3 sums. */
function log_likelihoods(params, config, memory, tokens_T) {
  const [logits_TV] = caption_logits(params, config, memory, tokens_T.slice(0, -1));
  return logits_TV.map((logits_V, t) => log_softmax(logits_V)[tokens_T[t + 1]]);
}

/** How much each token had of each patch when the next one was written, [T][N]: the decoder's
    attention, carried back through the pooler's, averaged over heads. A class token is left out. */
const looked_at = (p_HTS, pooled_QS, patches) =>
  linear(mean_of(p_HTS), { weight: pooled_QS }).map((looked_S) => looked_S.slice(-patches));
