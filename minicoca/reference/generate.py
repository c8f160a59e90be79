"""Writing captions: greedy, sampled, or by beam search. Uncached: every step runs the whole prefix.

The paper does not say how it decodes. Every method honours the prompt (it starts with the start
token), writes what decoding.py lets it, `controls` being the settings of restrict_logits, and
treats each row by itself, so that a caption does not depend on the other images of its batch.
"""

import numpy as np

from ..config import END, PAD, START
from ..params import demand_finite, stream
from .answers import answer_logits
from .decoding import draw, restrict_logits
from .ops import linear, log_softmax
from .relatives import PAIRS, decoder, image_features, match, text_features
from .text import lengths_of, multimodal_decoder
from .vision import normalise


def next_logits(params, config, memory_BSM, tokens_BT, start, **controls):
    """Logits of the token after each text [B, V], of whose tokens `start` are the prompt's; what
    may not be written has -inf."""
    (_, x_BTD), own = text_features(params, config, tokens_BT), decoder(params, config)
    n_BTD, _ = multimodal_decoder(x_BTD, memory_BSM, own, config)
    logits_BV, _ = linear(n_BTD[:, -1], own["head"])
    demand_finite(np.isfinite(logits_BV).all(), "probabilities")
    return restrict_logits(logits_BV, tokens_BT, tokens_BT.shape[1] - start, **controls)


def generate(
    params, config, images_BII3, prompt, *, temperature=0.0, top_k=0, top_p=1.0, seed=0,
    first_stream=0, max_length=0, **controls,
):  # fmt: skip
    """Continue each prompt (ids [B, T0]) until end, text_length or, if given, max_length tokens of
    our own: ids [B, T], padded.

    temperature 0: greedy. Otherwise row b draws from a stream of its own, that of
    (seed, first_stream + b).
    """
    _, memory, _ = image_features(params, config, images_BII3)
    tokens_BT, start = np.array(prompt), prompt.shape[1]
    streams = [stream("sample", seed, first_stream + b) for b in range(len(tokens_BT))]
    while tokens_BT.shape[1] < _limit(config, start, max_length):
        done_B = (tokens_BT == END).any(1)
        if done_B.all():
            break
        # Finished rows carry padding at their end; their next token is thrown away.
        logits_BV = next_logits(params, config, memory, tokens_BT, start, **controls)
        next_B = draw(logits_BV, streams, temperature, top_k, top_p)
        tokens_BT = np.concatenate([tokens_BT, np.where(done_B, PAD, next_B)[:, None]], 1)
    return tokens_BT


def _limit(config, start, max_length):
    return min(config.text_length, start + (max_length or config.text_length))


def beam_search(
    params, config, image_II3, prompt, *, beams=4, beam_groups=1, diversity=0.0,
    length_penalty=1.0, max_length=0, **controls,
):  # fmt: skip
    """The captions that beams find for one image, best first, none twice: [(ids [T], score)].

    Score: log probability over (tokens written, the end too) ** length_penalty, so that short
    captions are not preferred for being short. Found is what ended or, where nothing did in time,
    what is open: at most one a beam. The search stops when no open beam can still be among them.
    Groups (Vijayakumar et al. 2018) share the beams out and search one after the other; in choosing
    its beams, not in their scores, a group counts a token's log probability less by `diversity` for
    each beam of an earlier group that goes on with it.
    """
    _, memory, _ = image_features(params, config, image_II3[None])
    size, start, limit = beams // beam_groups, len(prompt), _limit(config, len(prompt), max_length)
    # Log probabilities only fall; the longest possible caption divides them by the most.
    most = max(1, limit - start) ** max(length_penalty, 0.0)
    opened, finished = [[(0.0, list(prompt))]] * beam_groups, [[]] * beam_groups
    for written in range(1, limit - start + 1):
        less_V = np.zeros(config.vocabulary)
        for g, own in enumerate(opened):
            found = likeliest(params, config, memory, own, less_V, 2 * size, start, controls)
            ended = [(total, ids) for total, ids in found[:size] if ids[-1] == END]
            finished[g] = finished[g] + scores(ended, written, length_penalty)
            finished[g] = sorted(finished[g], key=lambda f: -f[0])[:size]
            opened[g] = [(total, ids) for total, ids in found if ids[-1] != END][:size]
            np.add.at(less_V, [ids[-1] for _, ids in opened[g]], diversity)
        lowest = [f[-1][0] if len(f) == size else -np.inf for f in finished]
        if all(not o or max(o)[0] / most <= low for o, low in zip(opened, lowest, strict=True)):
            break
    if not any(finished):
        finished = [scores(own, max(1, limit - start), length_penalty) for own in opened]
    distinct = {}
    for score, ids in sorted(sum(finished, []), key=lambda f: -f[0]):
        distinct.setdefault(tuple(ids), score)
    return [(np.array(ids), score) for ids, score in distinct.items()]


def likeliest(params, config, memory, beams, less_V, most, start, controls):
    """The likeliest of what beams (log probability, ids) become by a token more, `most` at most,
    where tokens count less by less_V."""
    if not beams:
        return []
    tokens_BT, memory = np.array([ids for _, ids in beams]), np.repeat(memory, len(beams), 0)
    log_p_BV, _ = log_softmax(next_logits(params, config, memory, tokens_BT, start, **controls))
    totals_BV = np.array([total for total, _ in beams])[:, None] + log_p_BV
    best = np.argsort(less_V - totals_BV, axis=None, kind="stable")[:most]
    places = [divmod(int(place), len(less_V)) for place in best]
    grown = [(float(totals_BV[b, token]), [*beams[b][1], token]) for b, token in places]
    return [(total, ids) for total, ids in grown if np.isfinite(total)]


def scores(beams, written, length_penalty):
    """Beams (log probability, ids) as (score, ids)."""
    return [(total / written**length_penalty, ids) for total, ids in beams]


def log_likelihoods(params, config, images_BII3, tokens_RT):
    """log P(y_t | y_<t, x), what Eq. 3 sums, of every token but the first, of each of R texts (ids,
    padded) given each of B images: [B, R, T - 1], and 0 for padding.

    As in training, over the whole vocabulary: the mean of a pair's is minus its captioning loss.
    """
    _, memory, _ = image_features(params, config, images_BII3)
    (_, x_RTD), own = text_features(params, config, tokens_RT), decoder(params, config)
    found, pairs = [], np.indices((len(images_BII3), len(tokens_RT))).reshape(2, -1)
    for first in range(0, pairs.shape[1], PAIRS):
        image, text = pairs[:, first : first + PAIRS]
        n, _ = multimodal_decoder(x_RTD[text, :-1], memory[image], own, config)
        log_p = log_softmax(linear(n, own["head"])[0])[0]
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
        return self.features(images)[0]

    def features(self, images):
        """uint8 [B, I, I, 3] -> (unit vectors [B, E], the tower's own tokens [B, S, M])."""
        given = self.params, self.config, normalise(images, self.config)
        vectors_BE, _, tokens_BSM = image_features(*given)
        demand_finite(np.isfinite(vectors_BE).all(), "image vectors")
        return vectors_BE, tokens_BSM

    def embed_texts(self, tokens):
        """Ids [B, T] -> unit vectors [B, E]."""
        vectors_BE = text_features(self.params, self.config, tokens)[0]
        demand_finite(np.isfinite(vectors_BE).all(), "text vectors")
        return vectors_BE

    def match(self, images, tokens, image_P, text_P):
        """uint8 [B, I, I, 3], ids [R, T], P pairs of their places -> log-odds that they are one."""
        images = normalise(images, self.config)
        logits_P2 = match(self.params, self.config, images, tokens, image_P, text_P)
        demand_finite(np.isfinite(logits_P2).all(), "pairs")
        return logits_P2[:, 1] - logits_P2[:, 0]

    def answer(self, images, tokens):
        """uint8 images, ids [B, T] of start, question and end -> log p of each answer [B, A]."""
        images, lengths_B = normalise(images, self.config), lengths_of(tokens) - 1
        logits_BA = answer_logits(self.params, self.config, images, tokens, lengths_B)
        demand_finite(np.isfinite(logits_BA).all(), "answers")
        return log_softmax(logits_BA)[0]

    def log_likelihoods(self, images, tokens):
        """uint8 [B, I, I, 3], ids [R, T] -> log p of every token but the first: [B, R, T - 1]."""
        return log_likelihoods(self.params, self.config, normalise(images, self.config), tokens)

    def generate(self, images, prompt=(START,), beams=0, **how):
        """Ids [B, T] that continue the prompt (ids [T0], or without beams one for each image) of
        each image; beams > 0: beam search."""
        if not beams:
            images_BII3 = normalise(images, self.config)
            prompts = np.broadcast_to(prompt, (len(images), np.shape(prompt)[-1]))
            return generate(self.params, self.config, images_BII3, prompts, **how)
        found = [own[0][0] for own in self.beam_search(images, prompt, beams=beams, **how)]
        tokens_BT = np.full((len(found), max(map(len, found))), PAD)
        for row, ids in zip(tokens_BT, found, strict=True):
            row[: len(ids)] = ids
        return tokens_BT

    def beam_search(self, images, prompt=(START,), **how):
        """What beams find for each image, best first: a list of lists of (ids [T], score)."""
        images_BII3 = normalise(images, self.config)
        return [beam_search(self.params, self.config, x, prompt, **how) for x in images_BII3]
