// The smallest layers, forward only: reference/ops.py for one sample. A matrix is an array of rows,
// so x_TD[t][d] is NumPy's x_TD[t, d]; letters at the end of a name are its axes, as there.
"use strict";
/** y = x W + b; the bias may be absent. */
function linear(x_RD, { weight: weight_DF, bias: bias_F }) {
  return x_RD.map((x_D) => {
    const y_F = new Float64Array(weight_DF[0].length);
    if (bias_F) y_F.set(bias_F);
    for (let d = 0; d < weight_DF.length; d++) {
      const x = x_D[d];
      const weight_F = weight_DF[d];
      for (let f = 0; f < y_F.length; f++) y_F[f] += x * weight_F[f];
    }
    return y_F;
  });
}

const add = (x_RD, y_RD) => x_RD.map((x_D, r) => x_D.map((x, d) => x + y_RD[r][d]));
const sum = (x_D) => x_D.reduce((total, x) => total + x, 0);
const mean_of = (x_HTS) =>
  x_HTS[0].map((row, t) => row.map((_, s) => sum(x_HTS.map((x_TS) => x_TS[t][s])) / x_HTS.length));
function dot(x_D, y_D) {
  let total = 0;
  for (let d = 0; d < x_D.length; d++) total += x_D[d] * y_D[d];
  return total;
}

/** x Phi(x), or its usual approximation by tanh. */
function gelu(x, kind) {
  const t = Math.tanh(Math.sqrt(2 / Math.PI) * x * (1 + 0.044715 * x * x));
  return 0.5 * x * (1 + (kind === "tanh" ? t : erf(x / Math.sqrt(2))));
}

/** 2/sqrt(pi) e^(-x^2) sum (2x^2)^n x / (2n+1)!!; beyond 6 it is 1 to the last bit. */
function erf(x) {
  if (Math.abs(x) >= 6) return Math.sign(x);
  let [term, total] = [x, x];
  for (let n = 1; n < 150; n++) total += term *= (2 * x * x) / (2 * n + 1);
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * total;
}

/** scale * (x - mean) / std + bias for each row. */
function layer_norm(x_RD, params, eps = 1e-5) {
  return x_RD.map((x_D) => {
    const mean = sum(x_D) / x_D.length;
    const centred_D = x_D.map((x) => x - mean); // (1)
    const rstd = 1 / Math.sqrt(dot(centred_D, centred_D) / x_D.length + eps); // (2) (3)
    return centred_D.map((x, d) => x * rstd * params.scale[d] + params.bias[d]); // (4) (5)
  });
}

/** exp(x) / sum exp(x). A row of nothing but -Infinity gives zeros. */
function softmax(x_S) {
  const peak = Math.max(...x_S); // cancels in the quotient; keeps exp in range
  const e_S = x_S.map((x) => Math.exp(x - (Number.isFinite(peak) ? peak : 0)));
  const total = sum(e_S);
  return e_S.map((e) => e / (total || 1));
}

/** x - log sum exp(x). */
function log_softmax(x_V) {
  const peak = Math.max(...x_V);
  const total = peak + Math.log(sum(x_V.map((x) => Math.exp(x - peak))));
  return x_V.map((x) => x - total);
}

/** x / |x|. */
const l2_normalise = (x_D, eps = 1e-12) => x_D.map((x) => x / Math.sqrt(dot(x_D, x_D) + eps));
