"""Writing captions, as reference/generate.py, but with a cache: each step runs one new token, and
the image's keys and values are projected once."""

import numpy as np
import torch

from ..config import END, PAD, START, UNKNOWN
from ..params import demand_finite, stream, tree_map
from .attention import mlp_layer
from .model import encode_image, encode_text
from .ops import attention, embedding, layer_norm, linear, pick_device, use, with_own_backend
from .text import TextRows, multimodal_decoder
from .vision import normalise

ROUNDING = 1e-6  # a set that lacks no more than this has probability top_p
PAIRS = 64  # of an image and a text, read at once
ROWS = 256  # of logits at a time


class Cache:
    """Keys and values of everything read so far, for rows that grow token by token.

    At first row b reads image b; `select` changes that.
    """

    def __init__(self, params, config, memory_BSM):
        self.config, self.params, self.length = config, params, 0
        self.past = {}
        for i in range(config.multimodal_layers):
            layer = params["decoder"]["blocks"][str(i)]
            m_BSM = layer_norm(memory_BSM, layer["norm_memory"])
            self.past["cross", i] = self._key_value(m_BSM, layer["cross"])

    def _key_value(self, x, params):
        heads = self.config.text_heads
        return [linear(x, params[name]).unflatten(-1, (heads, -1)) for name in ("key", "value")]

    def select(self, rows):
        """Keep these rows, in this order, some perhaps more than once."""
        self.past = {k: [x.index_select(0, rows) for x in v] for k, v in self.past.items()}

    def _attend(self, x_BTD, params, name, causal=False):
        q_BTHK = linear(x_BTD, params["query"]).unflatten(-1, (self.config.text_heads, -1))
        o_BTHK = attention(q_BTHK, *self.past[name], causal=causal)
        return linear(o_BTHK.flatten(-2), params["output"])

    def _self_attention(self, x_BTD, layer, name):
        n_BTD = layer_norm(x_BTD, layer["norm_attention"])
        new, old = self._key_value(n_BTD, layer["attention"]), self.past.get(name)
        self.past[name] = [torch.cat(p, 1) for p in zip(old, new, strict=True)] if old else new
        causal = not old and x_BTD.shape[1] > 1
        return x_BTD + self._attend(n_BTD, layer["attention"], name, causal)

    def next_log_probabilities(self, tokens_BT):
        """Read new tokens (several only at first); log p of the next one [B, V], in float32."""
        config, params, start = self.config, self.params, self.length
        self.length += tokens_BT.shape[1]
        x_BTD = embedding(tokens_BT, params["text"]["token"])
        x_BTD = x_BTD + params["text"]["position"][start : self.length]
        for i in range(config.unimodal_layers):
            layer = params["text"]["blocks"][str(i)]
            x_BTD = self._self_attention(x_BTD, layer, ("unimodal", i))
            x_BTD = mlp_layer(x_BTD, layer["norm_mlp"], layer["mlp"], config.gelu)
        for i in range(config.multimodal_layers):
            layer = params["decoder"]["blocks"][str(i)]
            x_BTD = self._self_attention(x_BTD, layer, ("multimodal", i))
            if config.multimodal_mlps == 2:
                x_BTD = mlp_layer(x_BTD, layer["norm_inner"], layer["inner_mlp"], config.gelu)
            n_BTD = layer_norm(x_BTD, layer["norm_cross"])
            x_BTD = x_BTD + self._attend(n_BTD, layer["cross"], ("cross", i))
            x_BTD = mlp_layer(x_BTD, layer["norm_mlp"], layer["mlp"], config.gelu)
        n_BD = layer_norm(x_BTD[:, -1], params["decoder"]["norm"])
        logits_BV = linear(n_BD, params["decoder"]["head"])
        logits_BV = logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32))
        logits_BV[:, [PAD, START, UNKNOWN]] = -torch.inf
        log_p_BV = torch.log_softmax(logits_BV, -1)
        demand_finite(log_p_BV[:, END].isfinite().all(), "probabilities")
        return log_p_BV


def filter_logits(logits_BV, temperature=1.0, top_k=0, top_p=1.0):
    """Divide by the temperature, then keep the k likeliest tokens (Fan et al. 2018) and the
    smallest set with probability top_p (Holtzman et al. 2020). The likeliest always stays; with
    top_k 0 and top_p 1 all do."""
    logits_BV = logits_BV / temperature
    sorted_BV, order_BV = torch.sort(logits_BV, dim=-1, descending=True, stable=True)
    p_BV = torch.softmax(sorted_BV.double(), -1)
    before_BV = torch.cumsum(p_BV, -1) - p_BV  # probability of the likelier tokens
    drop_BV = (before_BV >= top_p - ROUNDING) & (top_p < 1)
    drop_BV[:, top_k or logits_BV.shape[-1] :] = True
    drop_BV[:, 0] = False
    kept_BV = sorted_BV.masked_fill(drop_BV, -torch.inf)
    return torch.empty_like(kept_BV).scatter_(-1, order_BV, kept_BV)


@torch.inference_mode()
def generate(
    params,
    config,
    images_BII3,
    prompt_BT,
    *,
    temperature=0.0,
    top_k=0,
    top_p=1.0,
    seed=0,
    first_stream=0,
):
    """Continue each prompt (ids [B, T0]) until end or text_length: ids [B, T], padded.

    temperature 0: greedy. Otherwise row b draws from a stream of its own, that of
    (seed, first_stream + b).
    """
    _, memory = encode_image(params, config, images_BII3)
    cache, tokens_BT, new_BT = Cache(params, config, memory), prompt_BT, prompt_BT
    streams = [stream("sample", seed, first_stream + b) for b in range(len(tokens_BT))]
    while tokens_BT.shape[1] < config.text_length:
        done_B = (tokens_BT == END).any(1)
        if done_B.all():
            break
        log_p_BV = cache.next_log_probabilities(new_BT)
        if temperature == 0:
            next_B = log_p_BV.argmax(-1)
        else:
            p_BV = torch.softmax(filter_logits(log_p_BV, temperature, top_k, top_p), -1)
            total_BV = torch.cumsum(p_BV.double(), -1)  # a float32 draw could be a whole 1
            uniform_B1 = total_BV.new_tensor([[own.random()] for own in streams])
            next_B = (total_BV <= uniform_B1 * total_BV[:, -1:]).sum(-1)
        new_BT = next_B.masked_fill(done_B, PAD)[:, None]
        tokens_BT = torch.cat([tokens_BT, new_BT], 1)
    return tokens_BT


@torch.inference_mode()
def beam_search(params, config, images_BII3, prompt_T, *, beams=4, length_penalty=1.0):
    """The best of the captions that a beam finds for each image: a list of (ids [T], score).

    Score: log probability over (tokens written) ** length_penalty, so that short captions are not
    preferred for being short. An image's search stops when no open beam of it can still win.
    """
    _, memory = encode_image(params, config, images_BII3)
    cache, prompt = Cache(params, config, memory), prompt_T.tolist()
    rows = [(b, 0.0, prompt) for b in range(len(images_BII3))]  # every open beam of every image
    finished = [[] for _ in rows]
    new_BT = prompt_T.expand(len(rows), -1)
    most = max(1, config.text_length - len(prompt)) ** max(length_penalty, 0.0)
    for length in range(len(prompt) + 1, config.text_length + 1):
        log_p_BV = cache.next_log_probabilities(new_BT)
        totals_BV = log_p_BV + log_p_BV.new_tensor([total for _, total, _ in rows])[:, None]
        grown, parents = [], []
        for b in sorted({b for b, _, _ in rows}):
            own = [r for r, row in enumerate(rows) if row[0] == b]
            flat = totals_BV[own].flatten()
            values, best = torch.sort(flat, descending=True, stable=True)
            values, best = values[: 2 * beams].tolist(), best[: 2 * beams].tolist()
            opened = []
            for rank, place in enumerate(best):
                row, token = own[place // totals_BV.shape[1]], place % totals_BV.shape[1]
                total, tokens = values[rank], rows[row][2] + [token]
                if total == -float("inf"):
                    continue
                if token == END and rank < beams:
                    score = total / (length - len(prompt)) ** length_penalty
                    finished[b].append((score, tokens))
                elif token != END and len(opened) < beams:
                    opened.append((b, total, tokens, row))
            finished[b] = sorted(finished[b], key=lambda f: -f[0])[:beams]
            # Log probabilities only fall; the longest possible caption divides them by the most.
            full = len(finished[b]) == beams
            if not (full and opened and opened[0][1] / most <= finished[b][-1][0]):
                grown += [row[:3] for row in opened]
                parents += [row[3] for row in opened]
        rows = grown
        if not rows:
            break
        device = prompt_T.device
        cache.select(torch.tensor(parents, device=device))
        new_BT = torch.tensor([[tokens[-1]] for _, _, tokens in rows], device=device)
    best = []
    for b, found in enumerate(finished):
        if not found:  # nothing ended in time: the likeliest that is still open
            written = max(1, config.text_length - len(prompt))
            found = [(t / written**length_penalty, ids) for i, t, ids in rows if i == b]
        score, ids = max(found, key=lambda f: f[0])
        best.append((torch.tensor(ids), score))
    return best


@torch.inference_mode()
def log_likelihoods(params, config, images_BII3, tokens_RT):
    """log P(y_t | y_<t, x), what Eq. 3 sums, of every token but the first, of each of R texts (ids,
    padded) given each of B images: [B, R, T - 1], and 0 for padding."""
    _, memory = encode_image(params, config, images_BII3)
    rows, decoder = TextRows(tokens_RT, config), params["decoder"]
    _, x_RTD = encode_text(params, config, tokens_RT, rows)
    x_RTD = rows.decoder_packing.pad(x_RTD) if rows.decoder_packing else x_RTD
    found, every = [], torch.arange(len(images_BII3) * len(tokens_RT), device=x_RTD.device)
    for pairs in every.split(PAIRS):
        image, text = pairs // len(tokens_RT), pairs % len(tokens_RT)
        n = multimodal_decoder(x_RTD[text], memory[image], decoder, config)
        targets = tokens_RT[text, 1:]
        real, wide = targets != PAD, torch.promote_types(n.dtype, torch.float32)
        log_p = torch.zeros(targets.shape, dtype=wide, device=n.device)
        log_p[real] = torch.cat([
            torch.log_softmax(linear(n_RD, decoder["head"]).to(wide), -1).gather(1, t_R1)[:, 0]
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
        vectors_BE = encode_image(self.params, self.config, self._normalised(images))[0]
        demand_finite(vectors_BE.isfinite().all(), "image vectors")
        return vectors_BE.cpu().numpy()

    @with_own_backend
    @torch.inference_mode()
    def embed_texts(self, tokens):
        """Ids [B, T] -> unit vectors [B, E]."""
        tokens = torch.as_tensor(tokens, device=self.device)
        vectors_BE = encode_text(self.params, self.config, tokens)[0]
        demand_finite(vectors_BE.isfinite().all(), "text vectors")
        return vectors_BE.cpu().numpy()

    @with_own_backend
    def log_likelihoods(self, images, tokens):
        """uint8 [B, I, I, 3], ids [R, T] -> log p of every token but the first: [B, R, T - 1]."""
        images, tokens = self._normalised(images), torch.as_tensor(tokens, device=self.device)
        return log_likelihoods(self.params, self.config, images, tokens).cpu().numpy()

    @with_own_backend
    def generate(self, images, prompt=(START,), beams=0, **sampling):
        """Ids [B, T] that continue the prompt (ids [T0]) for each image; beams > 0: beam search."""
        images = self._normalised(images)
        prompt_T = torch.tensor(prompt, device=self.device)
        if not beams:
            prompt_BT = prompt_T.expand(len(images), -1)
            return generate(self.params, self.config, images, prompt_BT, **sampling).cpu().numpy()
        found = beam_search(self.params, self.config, images, prompt_T, beams=beams, **sampling)
        tokens_BT = np.full((len(found), max(len(ids) for ids, _ in found)), PAD)
        for row, (ids, _) in zip(tokens_BT, found, strict=True):
            row[: len(ids)] = ids.numpy()
        return tokens_BT
