"""Writing captions, as reference/generate.py, but with a cache: each step runs new tokens alone."""

import numpy as np
import torch

from ..config import END, PAD, START
from ..params import demand_finite, stream, tree_map
from .answers import answer_logits
from .cache import Cache
from .decoding import draw, largest, restrict_logits
from .ops import linear, pick_device, use, widened, with_own_backend
from .relatives import PAIRS, decoder, image_features, match, text_features
from .text import lengths_of, multimodal_decoder
from .vision import normalise

ROWS = 256  # of logits at a time


@torch.inference_mode()
def generate(
    params, config, images_BII3, prompt_BT, *, temperature=0.0, top_k=0, top_p=1.0, seed=0,
    first_stream=0, max_length=0, **controls,
):  # fmt: skip
    """Continue each prompt (ids [B, T0]) until end, text_length or, if given, max_length tokens of
    our own: ids [B, T], padded.

    temperature 0: greedy. Otherwise row b draws from a stream of its own, that of
    (seed, first_stream + b).
    """
    start, limit = prompt_BT.shape[1], _limit(config, prompt_BT.shape[1], max_length)
    going_B = ~(prompt_BT == END).any(1)
    if start >= limit or not going_B.any():
        return prompt_BT
    rows_R = going_B.nonzero()[:, 0]  # those that the cache still holds
    _, memory, _ = image_features(params, config, images_BII3[rows_R])
    cache, new_R1 = Cache(params, config, memory, limit - 1), prompt_BT[rows_R]
    streams = [stream("sample", seed, first_stream + b) for b in range(len(prompt_BT))]
    tokens_BT = torch.nn.functional.pad(prompt_BT, (0, limit - start), value=PAD)
    for length in range(start, limit):
        logits_RV = cache.next_logits(new_R1)[:, 0]
        restrict_logits(logits_RV, tokens_BT[rows_R, :length], length - start, **controls)
        own = [streams[b] for b in rows_R.tolist()] if temperature else ()
        next_R = draw(logits_RV, own, temperature, top_k, top_p)
        tokens_BT[rows_R, length] = next_R.masked_fill(~going_B[rows_R], PAD)
        going_B[rows_R] &= next_R != END
        left_R = going_B[rows_R].nonzero()[:, 0]
        if not len(left_R):
            break
        if 2 * len(left_R) <= len(rows_R):
            cache.keep(left_R)
            rows_R = rows_R[left_R]
        new_R1 = tokens_BT[rows_R, length, None]
    return tokens_BT[:, : length + 1]


def _limit(config, start, max_length):
    return min(config.text_length, start + (max_length or config.text_length))


@torch.inference_mode()
def beam_search(
    params, config, images_BII3, prompt_T, *, beams=4, beam_groups=1, diversity=0.0,
    length_penalty=1.0, max_length=0, best=0, **controls,
):  # fmt: skip
    """The captions that beams find for each image: a list of lists of (ids [T], score), the best
    first, none twice; `best`: so many of them are enough.

    Score: log probability over (tokens written, the end too) ** length_penalty, so that short
    captions are not preferred for being short. Found is what ended or, where nothing did in time,
    what is open: at most one a beam. An image's search stops when no open beam of it can still be
    among them. Groups (Vijayakumar et al. 2018) share the beams out and search one after the other;
    in choosing its beams, not in their scores, a group counts a token's log probability less by
    `diversity` for each beam of an earlier group that goes on with it.
    """
    start, limit = len(prompt_T), _limit(config, len(prompt_T), max_length)
    scoring = dict(length_penalty=length_penalty, longest=max(1, limit - start))
    prompt, size = prompt_T.tolist(), beams // beam_groups
    searches = [Search(prompt, size, beam_groups, best, **scoring) for _ in images_BII3]
    if start >= limit or not searches:
        return [search.found() for search in searches]
    _, memory, _ = image_features(params, config, images_BII3)
    beams = size * beam_groups
    cache = Cache(params, config, memory, start + beams * (limit - start - 1))
    held, new_BT, totals_BT = searches, prompt_T.expand(len(memory), -1), memory.new_zeros(1, 1)
    seen_BTS = torch.ones(len(memory), 1, start, dtype=torch.bool, device=memory.device)
    side_by_side = torch.eye(beams, dtype=torch.bool, device=memory.device)
    for written in range(limit - start):
        logits_BTV = cache.next_logits(new_BT, seen_BTS if written and beams > 1 else None)
        texts_RT = prompt_T.new_tensor([ids for search in held for ids in search.texts])
        restrict_logits(logits_BTV.view(len(texts_RT), -1), texts_RT, written, **controls)
        _choose(held, logits_BTV, totals_BT, diversity)
        going = [i for i, search in enumerate(held) if search.goes_on()]
        if not going:
            break
        if 2 * len(going) <= len(held):
            kept = prompt_T.new_tensor(going)
            cache.keep(kept)
            held, seen_BTS = [held[i] for i in going], seen_BTS[kept]
        new_BT = prompt_T.new_tensor([[ids[-1] for ids in search.texts] for search in held])
        totals_BT = logits_BTV.new_tensor([search.totals for search in held])
        parents_BT1 = prompt_T.new_tensor([search.parents for search in held])[..., None]
        seen_BTS = seen_BTS.gather(1, parents_BT1.expand(-1, -1, seen_BTS.shape[2]))
        seen_BTS = torch.cat([seen_BTS, side_by_side.expand(len(held), -1, -1)], 2)
    return [search.found() for search in searches]


class Search:
    """The beams of one image, group after group, and what they have found."""

    def __init__(self, prompt, size, groups, best, length_penalty, longest):
        self.prompt, self.size, self.best = prompt, size, min(best or size, size)
        self.length_penalty, self.longest = length_penalty, longest
        self.opened, self.finished = [[(0.0, prompt, 0)]] * groups, [[]] * groups
        self.texts, self.over = [prompt], False

    def choose(self, group, totals, places, tokens):
        """From the likeliest continuations of a group's beams, in order: their log probability, the
        beam's place, the token."""
        found = [
            (total, [*self.texts[place], token], place)
            for total, place, token in zip(totals, places, tokens, strict=True)
            if total > -np.inf
        ]
        ended = [f for f in found[: self.size] if f[1][-1] == END]
        finished = self.finished[group] + self._scored(ended)
        self.finished[group] = sorted(finished, key=lambda f: -f[0])[: self.size]
        self.opened[group] = [f for f in found if f[1][-1] != END][: self.size]

    def _scored(self, beams):
        start, power = len(self.prompt), self.length_penalty
        return [(total / max(1, len(ids) - start) ** power, ids) for total, ids, _ in beams]

    def goes_on(self):
        """Whether an open beam can still be among what is wanted. The next step's beams are in
        `texts`, `totals` and `parents` then; where a beam is missing, its total is -inf."""
        # Log probabilities only fall; the longest possible caption divides them by the most.
        most = self.longest ** max(self.length_penalty, 0.0)
        lowest = [f[self.best - 1][0] if len(f) >= self.best else -np.inf for f in self.finished]
        pairs = zip(self.opened, lowest, strict=True)
        self.over |= not any(own and max(own)[0] / most > low for own, low in pairs)
        missing = [(-np.inf, [*self.texts[0], PAD], 0)] * self.size
        rows = [
            row
            for own in self.opened
            for row in (missing if self.over else own + missing)[: self.size]
        ]
        self.totals, self.texts, self.parents = map(list, zip(*rows, strict=True))
        return not self.over

    def found(self):
        """[(ids [T], score)], the best first, none twice."""
        finished = self.finished if any(self.finished) else map(self._scored, self.opened)
        distinct = {}
        for score, ids in sorted(sum(finished, []), key=lambda f: -f[0]):
            distinct.setdefault(tuple(ids), score)
        return [(torch.tensor(ids), score) for ids, score in distinct.items()]


def _choose(searches, logits_BTV, totals_BT, diversity):
    """One step of every search, from its beams' logits and log probabilities so far."""
    groups, size = len(searches[0].opened), searches[0].size
    adding_BT1 = (totals_BT - logits_BTV.logsumexp(-1))[..., None]
    less_BV = logits_BTV.new_zeros(len(searches), logits_BTV.shape[2] if groups > 1 else 0)
    for g in range(groups):
        first = g * size if logits_BTV.shape[1] > 1 else 0
        own_BTV, adding = (x[:, first : first + size] for x in (logits_BTV, adding_BT1))
        ranked_BTV = own_BTV - less_BV[:, None] if g else own_BTV
        values, tokens = largest(ranked_BTV.flatten(0, 1), 2 * size)
        values, tokens = (x.unflatten(0, own_BTV.shape[:2]) for x in (values, tokens))
        order = (values + adding).flatten(1).sort(descending=True, stable=True).indices
        order = order[:, : 2 * size]
        totals = (own_BTV.gather(2, tokens) + adding).flatten(1).gather(1, order)
        places = first + order // tokens.shape[2]
        columns = totals.tolist(), places.tolist(), tokens.flatten(1).gather(1, order).tolist()
        for search, *row in zip(searches, *columns, strict=True):
            if not search.over:
                search.choose(g, *row)
        if g + 1 < groups:
            taken = [(b, f[1][-1]) for b, s in enumerate(searches) for f in s.opened[g]]
            rows, tokens = torch.tensor(taken, device=less_BV.device).view(-1, 2).T.long()
            less_BV.index_put_((rows, tokens), less_BV.new_tensor(diversity), accumulate=True)


@torch.inference_mode()
def log_likelihoods(params, config, images_BII3, tokens_RT):
    """log P(y_t | y_<t, x), what Eq. 3 sums, of every token but the first, of each of R texts (ids,
    padded) given each of B images: [B, R, T - 1], and 0 for padding."""
    _, memory, _ = image_features(params, config, images_BII3)
    (_, x_RTD), own = text_features(params, config, tokens_RT), decoder(params, config)
    found, every = [], torch.arange(len(images_BII3) * len(tokens_RT), device=x_RTD.device)
    for pairs in every.split(PAIRS):
        image, text = pairs // len(tokens_RT), pairs % len(tokens_RT)
        n = multimodal_decoder(x_RTD[text], memory[image], own, config)
        targets = tokens_RT[text, 1:]
        real, wide = targets != PAD, torch.promote_types(n.dtype, torch.float32)
        log_p = torch.zeros(targets.shape, dtype=wide, device=n.device)
        log_p[real] = torch.cat([
            torch.log_softmax(linear(n_RD, own["head"]).to(wide), -1).gather(1, t_R1)[:, 0]
            for n_RD, t_R1 in zip(n[real].split(ROWS), targets[real, None].split(ROWS), strict=True)
        ])  # fmt: skip
        found.append(log_p)
    log_p_BRT = torch.cat(found).unflatten(0, (len(images_BII3), len(tokens_RT)))
    demand_finite(log_p_BRT.isfinite().all(), "probabilities")
    return log_p_BRT


class CoCa:
    """A trained model to use: uint8 images and token ids in, NumPy arrays out, on any device."""

    def __init__(self, params, config, device=None):
        self.config, self.device = config, device or pick_device(config.device)
        use(config.backend)  # raises ValueError where it cannot be
        self.params = tree_map(lambda a: torch.as_tensor(a, device=self.device), params)

    def _normalised(self, images):
        return normalise(torch.as_tensor(images, device=self.device).float() / 255, self.config)

    @with_own_backend
    @torch.inference_mode()
    def embed_images(self, images):
        """uint8 [B, I, I, 3] -> unit vectors [B, E]."""
        vectors_BE = image_features(self.params, self.config, self._normalised(images))[0]
        demand_finite(vectors_BE.isfinite().all(), "image vectors")
        return vectors_BE.cpu().numpy()

    @with_own_backend
    @torch.inference_mode()
    def features(self, images):
        """uint8 [B, I, I, 3] -> (unit vectors [B, E], the tower's own tokens [B, S, M])."""
        given = self.params, self.config, self._normalised(images)
        vectors_BE, _, tokens_BSM = image_features(*given)
        finite = vectors_BE.isfinite().all() and tokens_BSM.isfinite().all()
        demand_finite(finite, "image tokens")
        return vectors_BE.cpu().numpy(), tokens_BSM.float().cpu().numpy()

    @with_own_backend
    @torch.inference_mode()
    def embed_texts(self, tokens):
        """Ids [B, T] -> unit vectors [B, E]."""
        tokens = torch.as_tensor(tokens, device=self.device)
        vectors_BE = text_features(self.params, self.config, tokens)[0]
        demand_finite(vectors_BE.isfinite().all(), "text vectors")
        return vectors_BE.cpu().numpy()

    @with_own_backend
    @torch.inference_mode()
    def match(self, images, tokens, image_P, text_P):
        """uint8 [B, I, I, 3], ids [R, T], P pairs of their places -> log-odds that they are one."""
        places = (torch.as_tensor(x, device=self.device) for x in (tokens, image_P, text_P))
        logits_P2 = match(self.params, self.config, self._normalised(images), *places)
        demand_finite(logits_P2.isfinite().all(), "pairs")
        return (logits_P2[:, 1] - logits_P2[:, 0]).float().cpu().numpy()

    @with_own_backend
    @torch.inference_mode()
    def answer(self, images, tokens):
        """uint8 images, ids [B, T] of start, question and end -> log p of each answer [B, A]."""
        images, tokens = self._normalised(images), torch.as_tensor(tokens, device=self.device)
        logits_BA = answer_logits(self.params, self.config, images, tokens, lengths_of(tokens) - 1)
        demand_finite(logits_BA.isfinite().all(), "answers")
        return torch.log_softmax(widened(logits_BA), -1).cpu().numpy()

    @with_own_backend
    def log_likelihoods(self, images, tokens):
        """uint8 [B, I, I, 3], ids [R, T] -> log p of every token but the first: [B, R, T - 1]."""
        images, tokens = self._normalised(images), torch.as_tensor(tokens, device=self.device)
        return log_likelihoods(self.params, self.config, images, tokens).cpu().numpy()

    @with_own_backend
    def generate(self, images, prompt=(START,), beams=0, **how):
        """Ids [B, T] that continue the prompt (ids [T0], or without beams one for each image) of
        each image; beams > 0: beam search."""
        if not beams:
            images = self._normalised(images)
            prompt_BT = torch.as_tensor(prompt, device=self.device).expand(len(images), -1)
            return generate(self.params, self.config, images, prompt_BT, **how).cpu().numpy()
        found = [own[0][0] for own in self.beam_search(images, prompt, beams=beams, best=1, **how)]
        tokens_BT = np.full((len(found), max(map(len, found))), PAD)
        for row, ids in zip(tokens_BT, found, strict=True):
            row[: len(ids)] = ids
        return tokens_BT

    @with_own_backend
    def beam_search(self, images, prompt=(START,), **how):
        """What beams find for each image, best first: a list of lists of (ids [T], score)."""
        images, prompt_T = self._normalised(images), torch.tensor(prompt, device=self.device)
        found = beam_search(self.params, self.config, images, prompt_T, **how)
        return [[(ids.numpy(), score) for ids, score in own] for own in found]
