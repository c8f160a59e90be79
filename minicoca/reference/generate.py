"""Writing captions: greedy, sampled, or by beam search. Uncached: every step runs the whole prefix.

The paper does not say how it decodes. Every method honours the prompt (it starts with the start
token), never writes padding, start or the unknown token, and treats each row by itself, so that a
caption does not depend on the other images of its batch.
"""

import numpy as np

from ..config import END, PAD, START, UNKNOWN
from ..params import demand_finite, stream
from .model import encode_image, encode_text
from .ops import linear, log_softmax
from .text import multimodal_decoder
from .vision import normalise

ROUNDING = 1e-6  # a set that lacks no more than this has probability top_p
PAIRS = 16  # of an image and a text, read at once


def next_log_probabilities(params, config, memory_BSM, tokens_BT):
    """log p of the token after each prefix [B, V]; padding, start and unknown are impossible."""
    _, x_BTD, _ = encode_text(params, config, tokens_BT)
    n_BTD, _ = multimodal_decoder(x_BTD, memory_BSM, params["decoder"], config)
    logits_BV, _ = linear(n_BTD[:, -1], params["decoder"]["head"])
    logits_BV[:, [PAD, START, UNKNOWN]] = -np.inf
    log_p_BV, _ = log_softmax(logits_BV)
    demand_finite(np.isfinite(log_p_BV[:, END]).all(), "probabilities")
    return log_p_BV


def filter_logits(logits_BV, temperature=1.0, top_k=0, top_p=1.0):
    """Divide by the temperature, then keep the k likeliest tokens (Fan et al. 2018) and the
    smallest set with probability top_p (Holtzman et al. 2020). The likeliest always stays; with
    top_k 0 and top_p 1 all do."""
    logits_BV = logits_BV / temperature
    order_BV = np.argsort(-logits_BV, axis=-1, kind="stable")
    sorted_BV = np.take_along_axis(logits_BV, order_BV, -1)
    p_BV = np.exp(log_softmax(sorted_BV.astype(np.float64))[0])
    before_BV = np.cumsum(p_BV, -1) - p_BV  # probability of the likelier tokens
    drop_BV = (before_BV >= top_p - ROUNDING) & (top_p < 1)
    drop_BV[:, top_k or logits_BV.shape[-1] :] = True
    drop_BV[:, 0] = False
    kept_BV = np.where(drop_BV, -np.inf, sorted_BV)
    filtered_BV = np.empty_like(kept_BV)
    np.put_along_axis(filtered_BV, order_BV, kept_BV, -1)
    return filtered_BV


def generate(
    params, config, images_BII3, prompt, *, temperature=0.0, top_k=0, top_p=1.0, seed=0,
    first_stream=0,
):  # fmt: skip
    """Continue each prompt (ids [B, T0]) until end or text_length: ids [B, T], padded.

    temperature 0: greedy. Otherwise row b draws from a stream of its own, that of
    (seed, first_stream + b).
    """
    _, memory, _ = encode_image(params, config, images_BII3)
    tokens_BT = np.array(prompt)
    streams = [stream("sample", seed, first_stream + b) for b in range(len(tokens_BT))]
    while tokens_BT.shape[1] < config.text_length:
        done_B = (tokens_BT == END).any(1)
        if done_B.all():
            break
        # Finished rows carry padding at their end; their next token is thrown away.
        log_p_BV = next_log_probabilities(params, config, memory, tokens_BT)
        if temperature == 0:
            next_B = log_p_BV.argmax(-1)
        else:
            filtered_BV = filter_logits(log_p_BV, temperature, top_k, top_p)
            p_BV = np.exp(log_softmax(filtered_BV)[0])
            total_BV = np.cumsum(p_BV, -1, dtype=np.float64)  # a float32 draw could be a whole 1
            uniform_B1 = np.array([[own.random()] for own in streams])
            next_B = (total_BV <= uniform_B1 * total_BV[:, -1:]).sum(-1)
        tokens_BT = np.concatenate([tokens_BT, np.where(done_B, PAD, next_B)[:, None]], 1)
    return tokens_BT


def beam_search(params, config, image_II3, prompt, *, beams=4, length_penalty=1.0):
    """The best of the captions that a beam finds for one image: (ids [T], score).

    Score: log probability over (tokens written) ** length_penalty, so that short captions are not
    preferred for being short. The search stops when no open beam can still win.
    """
    _, memory, _ = encode_image(params, config, image_II3[None])
    open_beams, finished = [(0.0, list(prompt))], []
    while open_beams and len(open_beams[0][1]) < config.text_length:
        tokens_BT = np.array([tokens for _, tokens in open_beams])
        memories = np.repeat(memory, len(tokens_BT), 0)
        log_p_BV = next_log_probabilities(params, config, memories, tokens_BT)
        totals_BV = np.array([score for score, _ in open_beams])[:, None] + log_p_BV
        best = np.argsort(-totals_BV, axis=None, kind="stable")[: 2 * beams]
        written = tokens_BT.shape[1] + 1 - len(prompt)
        grown = []
        for rank, place in enumerate(best):
            b, token = divmod(int(place), totals_BV.shape[1])
            total, tokens = float(totals_BV[b, token]), open_beams[b][1] + [token]
            if not np.isfinite(total):
                continue
            if token == END and rank < beams:
                finished.append((total / written**length_penalty, tokens))
            elif token != END and len(grown) < beams:
                grown.append((total, tokens))
        open_beams = grown
        finished = sorted(finished, key=lambda f: -f[0])[:beams]
        # Log probabilities only fall; the longest possible caption divides them by the most.
        limit = max(1, config.text_length - len(prompt)) ** max(length_penalty, 0.0)
        if len(finished) == beams and open_beams and open_beams[0][0] / limit <= finished[-1][0]:
            break
    if not finished:
        written = max(1, config.text_length - len(prompt))
        finished = [(s / written**length_penalty, tokens) for s, tokens in open_beams]
    score, tokens = max(finished, key=lambda f: f[0])
    return np.array(tokens), score


def log_likelihoods(params, config, images_BII3, tokens_RT):
    """log P(y_t | y_<t, x), what Eq. 3 sums, of every token but the first, of each of R texts (ids,
    padded) given each of B images: [B, R, T - 1], and 0 for padding.

    As in training, over the whole vocabulary: the mean of a pair's is minus its captioning loss.
    """
    _, memory, _ = encode_image(params, config, images_BII3)
    _, x_RTD, _ = encode_text(params, config, tokens_RT)
    found, pairs = [], np.indices((len(images_BII3), len(tokens_RT))).reshape(2, -1)
    for first in range(0, pairs.shape[1], PAIRS):
        image, text = pairs[:, first : first + PAIRS]
        n, _ = multimodal_decoder(x_RTD[text, :-1], memory[image], params["decoder"], config)
        log_p = log_softmax(linear(n, params["decoder"]["head"])[0])[0]
        targets = tokens_RT[text, 1:]
        found.append(np.take_along_axis(log_p, targets[..., None], 2)[..., 0] * (targets != PAD))
    log_p_BRT = np.concatenate(found).reshape(len(images_BII3), len(tokens_RT), -1)
    demand_finite(np.isfinite(log_p_BRT).all(), "probabilities")
    return log_p_BRT


class CoCa:
    """A trained model to use: uint8 images and token ids in, arrays out."""

    def __init__(self, params, config):
        self.params, self.config = params, config

    def embed_images(self, images):
        """uint8 [B, I, I, 3] -> unit vectors [B, E]."""
        vectors_BE = encode_image(self.params, self.config, normalise(images, self.config))[0]
        demand_finite(np.isfinite(vectors_BE).all(), "image vectors")
        return vectors_BE

    def embed_texts(self, tokens):
        """Ids [B, T] -> unit vectors [B, E]."""
        vectors_BE = encode_text(self.params, self.config, tokens)[0]
        demand_finite(np.isfinite(vectors_BE).all(), "text vectors")
        return vectors_BE

    def log_likelihoods(self, images, tokens):
        """uint8 [B, I, I, 3], ids [R, T] -> log p of every token but the first: [B, R, T - 1]."""
        return log_likelihoods(self.params, self.config, normalise(images, self.config), tokens)

    def generate(self, images, prompt=(START,), beams=0, **sampling):
        """Ids [B, T] that continue the prompt (ids [T0]) for each image; beams > 0: beam search."""
        images_BII3 = normalise(images, self.config)
        if not beams:
            prompts = np.tile(prompt, (len(images), 1))
            return generate(self.params, self.config, images_BII3, prompts, **sampling)
        found = [
            beam_search(self.params, self.config, image, prompt, beams=beams, **sampling)[0]
            for image in images_BII3
        ]
        tokens_BT = np.full((len(found), max(map(len, found))), PAD)
        for row, ids in zip(tokens_BT, found, strict=True):
            row[: len(ids)] = ids
        return tokens_BT
