// Attention, the MLP and the block made of both: reference/attention.py for one sample. Where the
// reference returns (y, cache), these return [y, p_HTS]: where each head looked is what is shown.
// `params.off` of an attention, if there, says which of its heads the visitor has switched off.

/** [T][T], true where query t may see key s: s <= t. */
const causal_mask = (length) =>
  Array.from({ length }, (_, t) => Array.from({ length }, (_, s) => s <= t));

/** Tokens see what came before; CLS, the last, sees the valid tokens and itself. `hidden`: places
    of tokens that the visitor keeps from CLS. */
function text_mask(length, tokens, legacy = false, hidden = []) {
  const mask_SS = causal_mask(tokens + 1);
  mask_SS[tokens] = mask_SS[tokens].map((_, s) =>
    legacy ? s <= length : (s < length && !hidden.includes(s)) || s === tokens,
  );
  return mask_SS;
}

/** softmax(q k' / sqrt(K)) v for each head; the heads' columns stand side by side in D. */
function attention(q_TD, k_SD, v_SD, heads, mask_TS, off = []) {
  const K = q_TD[0].length / heads;
  const o_TD = q_TD.map((q_D) => new Float64Array(q_D.length));
  const p_HTS = [...Array(heads).keys()].map((h) => {
    const columns = [h * K, (h + 1) * K];
    const [k_SK, v_SK] = [k_SD, v_SD].map((x_SD) => x_SD.map((x_D) => x_D.subarray(...columns)));
    return q_TD.map((q_D, t) => {
      const q_K = q_D.subarray(...columns);
      const sees = (s) => !mask_TS || mask_TS[t][s];
      const s_S = k_SK.map((k_K, s) => (sees(s) ? dot(q_K, k_K) / K ** 0.5 : -Infinity)); // (1) (2)
      const p_S = off[h] ? s_S.map(() => 0) : softmax(s_S); // (3)
      for (let s = 0; s < p_S.length; s++) {
        for (let k = 0; k < K; k++) o_TD[t][h * K + k] += p_S[s] * v_SK[s][k]; // (4)
      }
      return p_S;
    });
  });
  return [o_TD, p_HTS];
}

/** Queries from x, keys and values from memory (x itself for self-attention). */
function multi_head_attention(x_TD, memory_SM, params, heads, mask_TS) {
  const q_TD = linear(x_TD, params.query);
  const [k_SD, v_SD] = [params.key, params.value].map((map) => linear(memory_SM, map));
  const [o_TD, p_HTS] = attention(q_TD, k_SD, v_SD, heads, mask_TS, params.off);
  return [linear(o_TD, params.output), p_HTS];
}

/** down(gelu(up(x))). */
const mlp = (x_TD, params, kind) =>
  linear(linear(x_TD, params.up).map((u_F) => u_F.map((u) => gelu(u, kind))), params.down);

/** x + attention(norm(x)). */
function self_attention_layer(x_TD, norm, params, heads, mask_TS) {
  const n_TD = layer_norm(x_TD, norm);
  const [a_TD, p_HTS] = multi_head_attention(n_TD, n_TD, params, heads, mask_TS);
  return [add(x_TD, a_TD), p_HTS];
}

/** x + attention(norm(x), norm(memory)). */
function cross_attention_layer(x_TD, memory_SM, norm, norm_memory, params, heads) {
  const [n_TD, m_SM] = [layer_norm(x_TD, norm), layer_norm(memory_SM, norm_memory)];
  const [a_TD, p_HTS] = multi_head_attention(n_TD, m_SM, params, heads);
  return [add(x_TD, a_TD), p_HTS];
}

/** x + mlp(norm(x)). */
const mlp_layer = (x_TD, norm, params, kind) =>
  add(x_TD, mlp(layer_norm(x_TD, norm), params, kind));

/** Self-attention, then MLP: a layer of the image encoder and of the unimodal decoder. */
function block(x_TD, params, heads, kind, mask_TS) {
  const own = [params.norm_attention, params.attention, heads, mask_TS];
  const [y_TD] = self_attention_layer(x_TD, ...own);
  return mlp_layer(y_TD, params.norm_mlp, params.mlp, kind);
}
