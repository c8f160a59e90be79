"""All of CoCa on one page of NumPy: pictures, model, gradient by hand, optimizer, captions.

    python one_page.py          a minute and a half on two cores; needs NumPy and nothing else

CoCa (Yu et al. 2022, arXiv 2205.01917) learns from pairs of a picture and a sentence in two ways at
once. Contrastive: of a batch, find each picture's sentence and each sentence's picture. Captioning:
write the sentence, token by token, looking at the picture. One model, one forward pass, Eq. 4.

Each operation makes a Node: its result y, its parents, and `back`, which turns the gradient of the
result into those of the parents. The tape of all Nodes, read backwards, is the chain rule.
Letters: B batch, T tokens, V words, R rows (all axes but the last), M width of an input.
"""

import math
import time

import numpy as np

SIDE, PATCH, WIDTH, HEADS, HIDDEN, QUERIES = 32, 8, 64, 4, 256, 16
LAYERS, STEPS, BATCH, WARMUP, RATE = {"image": 3, "text": 1, "decoder": 1}, 1000, 64, 50, 3e-3
# ---- Pictures of one or two shapes, and the one right sentence for each --------------------------
COLOURS = {"red": (218, 40, 45), "orange": (240, 125, 20), "yellow": (240, 220, 45)}
COLOURS |= {"green": (45, 160, 70), "blue": (45, 90, 220), "purple": (125, 50, 175)}
SHAPES = {  # where a shape of size 1 is, x to the right and y up
    "circle": lambda x, y: x * x + y * y < 1,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.85,
    "triangle": lambda x, y: (y > -0.6) & (y < 1 - 1.9 * abs(x)),
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) < 0.34) & (np.maximum(abs(x), abs(y)) < 1),
    "heart": lambda x, y: (x * x + y * y - 0.55) ** 3 < 1.4 * x * x * y**3,
    "ring": lambda x, y: abs(x * x + y * y - 0.66) < 0.34,
}
SEATS = {"": [(0, 0)], " left of ": [(-0.5, 0), (0.5, 0)], " above ": [(0, 0.5), (0, -0.5)]}
KEPT = [*zip(COLOURS, SHAPES, strict=True)]  # never seen in training; each word of them is, apart
SEEN = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in KEPT]
WORDS = ["", "(start)", "(end)", *"a small large left of above".split(), *COLOURS, *SHAPES]
PAD, START, END, LENGTH = 0, 1, 2, 12


def scene(rng, pairs):
    """A picture [32, 32, 3] of numbers from -1 to 1, and its sentence."""
    grid = (np.arange(2 * SIDE) + 0.5) / SIDE - 1
    picture, names = np.full((2 * SIDE, 2 * SIDE, 3), rng.uniform(0.85, 1)), []
    for x, y in SEATS[relation := str(rng.choice([*SEATS]))]:
        colour, shape = pairs[rng.integers(len(pairs))]
        size, radius = [("small", 0.24), ("large", 0.42)][rng.integers(2)]
        x, y = grid - x - rng.uniform(-0.06, 0.06), -grid - y - rng.uniform(-0.06, 0.06)
        tint = np.array(COLOURS[colour]) / 127.5 - 1 + rng.uniform(-0.1, 0.1, 3)
        picture[SHAPES[shape](x[None] / radius, y[:, None] / radius)] = tint
        names.append(f"a {size} {colour} {shape}")
    return picture.reshape(SIDE, 2, SIDE, 2, 3).mean((1, 3)), relation.join(names)  # smooth edges


def batch(rng, pairs=SEEN, size=BATCH):
    """Pictures [B, 32, 32, 3] and token ids [B, T], padded with 0."""
    pictures, texts = zip(*[scene(rng, pairs) for _ in range(size)], strict=True)
    ids = [[START, *map(WORDS.index, text.split()), END] for text in texts]
    return np.float32(pictures), np.array([row + [PAD] * (LENGTH - len(row)) for row in ids])


# ---- Operations, each with its gradient ----------------------------------------------------------
WEIGHTS, TAPE, RNG = {}, [], np.random.default_rng(0)


class Node:
    def __init__(self, y, parents=(), back=None):
        self.y, self.parents, self.back, self.d = y, parents, back, None
        TAPE.append(self)

    def __add__(self, other):
        return Node(self.y + other.y, (self, other), lambda d: (d, d))

    def __getitem__(self, where):
        """A part, or the row of a table for every id."""

        def back(d):
            dy = np.zeros_like(self.y)
            np.add.at(dy, where, d)  # a row may be taken many times
            return (dy,)

        return Node(self.y[where], (self,), back)

    def append(self, row):
        """A row more at the end of each sample [B, T, M]."""
        y = np.concatenate([self.y, np.stack([row.y[None]] * len(self.y))], 1)
        return Node(y, (self, row), lambda d: (d[:, :-1], d[:, -1]))

    def linear(self, name, width=WIDTH, has_bias=True):
        """y W + b. Matrices keep the variance of what they read; what is added to x is smaller."""
        M, small = self.y.shape[-1], 0.4 if name.endswith(("output", "down")) else 1
        weight = draw(f"{name}.weight", M, width, std=small * M**-0.5)
        bias = draw(f"{name}.bias", width) if has_bias else Node(np.float32(0))
        y_RM = self.y.reshape(-1, M)

        def back(d):
            d_R = d.reshape(-1, width)
            return (d_R @ weight.y.T).reshape(self.y.shape), y_RM.T @ d_R, d_R

        y = (y_RM @ weight.y + bias.y).reshape(*self.y.shape[:-1], width)
        return Node(y, (self, weight, bias), back)

    def norm(self, name):
        """Mean 0 and variance 1 along the last axis, then a scale and a bias."""
        scale, bias = draw(f"{name}.scale", WIDTH, mean=1), draw(f"{name}.bias", WIDTH)
        centred = self.y - self.y.mean(-1, keepdims=True)
        rstd = 1 / np.sqrt((centred * centred).mean(-1, keepdims=True) + 1e-5)
        yhat = centred * rstd

        def back(d):
            dyhat = d * scale.y
            through_spread = yhat * (dyhat * yhat).mean(-1, keepdims=True)
            return rstd * (dyhat - dyhat.mean(-1, keepdims=True) - through_spread), d * yhat, d

        return Node(yhat * scale.y + bias.y, (self, scale, bias), back)

    def gelu(self):
        """y Phi(y), by its approximation with tanh."""
        y, a = self.y, math.sqrt(2 / math.pi)
        t = np.tanh(a * y * (1 + 0.044715 * y * y))
        slope = 0.5 * (1 + t) + 0.5 * y * (1 - t * t) * a * (1 + 3 * 0.044715 * y * y)
        return Node(0.5 * y * (1 + t), (self,), lambda d: (d * slope,))

    def unit(self):
        """y / |y|."""
        rnorm = 1 / np.sqrt((self.y * self.y).sum(-1, keepdims=True) + 1e-12)
        y = self.y * rnorm
        return Node(y, (self,), lambda d: (rnorm * (d - y * (d * y).sum(-1, keepdims=True)),))


def draw(name, *shape, std=0.0, mean=0.0):
    """A weight by its name; it is drawn when it is first asked for."""
    if name not in WEIGHTS:
        WEIGHTS[name] = Node(np.float32(mean + std * RNG.standard_normal(shape)))
    return WEIGHTS[name]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(x, memory, name, mask=True):
    """softmax(q k' / sqrt(K)) v for each head; a mask is True where a query may look."""

    def split(y):  # [B, T, M] -> [B, heads, T, M / heads]
        return y.reshape(*y.shape[:-1], HEADS, -1).swapaxes(-3, -2)

    def join(y):
        return y.swapaxes(-3, -2).reshape(*y.shape[:-3], y.shape[-2], -1)

    made = x.linear(f"{name}.query"), memory.linear(f"{name}.key"), memory.linear(f"{name}.value")
    q, k, v = (split(node.y) for node in made)
    factor = q.shape[-1] ** -0.5
    p = softmax(np.where(mask, q @ k.swapaxes(-2, -1) * factor, -np.inf))

    def back(d):
        do = split(d)
        dp = do @ v.swapaxes(-2, -1)
        ds = p * (dp - (dp * p).sum(-1, keepdims=True)) * factor
        return join(ds @ k), join(ds.swapaxes(-2, -1) @ q), join(p.swapaxes(-2, -1) @ do)

    return Node(join(p @ v), made, back).linear(f"{name}.output")


def contrastive_loss(image, text):
    """Half of Eq. 2: of B x B similarities, the right ones are those on the diagonal."""
    log_temperature = draw("log_temperature", mean=math.log(0.07))
    scale = np.exp(-log_temperature.y)
    logits = scale * (image.y @ text.y.T)
    p, r, right = softmax(logits), softmax(logits.T), np.eye(len(logits), dtype=logits.dtype)
    d_BB = 0.5 / len(right) * (p - right + (r - right).T)
    gradients = scale * (d_BB @ text.y), scale * (d_BB.T @ image.y), -(d_BB * logits).sum()
    loss = -0.5 * np.log(np.diagonal(p) * np.diagonal(r)).mean()
    return Node(loss, (image, text, log_temperature), lambda d: [d * g for g in gradients])


def caption_loss(logits, labels):
    """Eq. 3: each token from those before it and the picture; mean over those that are real."""
    real, q = labels[..., None] != PAD, softmax(logits.y)
    q_label = np.take_along_axis(q, labels[..., None], 2)
    np.put_along_axis(q, labels[..., None], q_label - 1, 2)
    gradient = q * real / real.sum(dtype=q.dtype)
    return Node(-np.log(q_label[real]).mean(), (logits,), lambda d: (d * gradient,))


# ---- The model -----------------------------------------------------------------------------------
def blocks(x, part, mask=True, memory=None):
    """Layers add to x what attention finds in it, then in a memory if there is one, and an MLP."""
    for name in (f"{part}.blocks.{i}" for i in range(LAYERS[part])):
        n = x.norm(f"{name}.norm_attention")
        x = x + attention(n, n, f"{name}.attention", mask)
        if memory:
            n, m = x.norm(f"{name}.norm_cross"), memory.norm(f"{name}.norm_memory")
            x = x + attention(n, m, f"{name}.cross")
        n = x.norm(f"{name}.norm_mlp").linear(f"{name}.mlp.up", HIDDEN).gelu()
        x = x + n.linear(f"{name}.mlp.down")
    return x


def see(pictures):
    """Pictures -> a unit vector each [B, WIDTH], and a memory for the decoder."""
    side = SIDE // PATCH
    patches = pictures.reshape(-1, side, PATCH, side, PATCH, 3).swapaxes(2, 3)
    x = Node(patches.reshape(-1, side**2, 3 * PATCH**2)).linear("image.patch")
    x = blocks(x + draw("image.position", side**2, WIDTH, std=0.5), "image")
    # Two poolers, the second reading what the first made: learned queries ask, tokens answer.
    for name, queries in (("pooler.caption", QUERIES), ("pooler.contrast", 1)):
        q = draw(f"{name}.queries", queries, WIDTH, std=1).norm(f"{name}.norm_query")
        memory, x = x, attention(q, x.norm(f"{name}.norm_key"), f"{name}.attention")
        x = x.norm(f"{name}.norm_output")
    return x[:, 0].unit(), memory


def read(tokens):
    """Tokens -> a unit vector each [B, WIDTH], and the tokens' own outputs [B, T, WIDTH]. CLS, a
    learned vector after them, sees those that are no padding; they never see it."""
    B, T = tokens.shape
    x = draw("text.token", len(WORDS), WIDTH, std=0.5)[tokens]
    x = x + draw("text.position", LENGTH, WIDTH, std=0.5)[:T]
    mask = np.stack([np.tri(T + 1, dtype=bool)] * B)[:, None]
    mask[:, 0, -1, :T] = tokens != PAD
    x = blocks(x.append(draw("text.cls", WIDTH, std=0.5)), "text", mask)
    return x[:, -1].norm("text.norm").unit(), x[:, :-1]


def tell(x, memory):
    """Outputs of tokens and a picture's memory -> logits of what follows each [B, T, V]."""
    x = blocks(x, "decoder", np.tri(x.y.shape[1], dtype=bool), memory)
    return x.norm("decoder.norm").linear("decoder.head", len(WORDS), has_bias=False)


def losses(pictures, tokens):
    """(contrastive, caption) of a batch; weights then have the gradient of 1 : 2 (Eq. 4)."""
    TAPE.clear()
    (image, memory), (text, x) = see(pictures), read(tokens)
    contrastive = contrastive_loss(image, text)
    caption = caption_loss(tell(x[:, :-1], memory), tokens[:, 1:])  # the last predicts nothing
    for node in [*TAPE, *WEIGHTS.values()]:
        node.d = np.zeros_like(node.y)
    contrastive.d, caption.d = contrastive.d + 1, caption.d + 2
    for node in reversed([node for node in TAPE if node.back]):
        for parent, d in zip(node.parents, node.back(node.d), strict=True):
            parent.d = parent.d + d.sum(tuple(range(d.ndim - parent.y.ndim)))  # it was repeated
    return contrastive.y, caption.y


def write(pictures):
    """The likeliest token, again and again, until all have ended: ids [B, T]."""
    memory, tokens = see(pictures)[1], np.full((len(pictures), 1), START)
    while tokens.shape[1] < LENGTH and not (tokens == END).any(1).all():
        logits = tell(read(tokens)[1], memory).y
        new = np.where((tokens == END).any(1), PAD, logits[:, -1, END:].argmax(-1) + END)
        tokens = np.concatenate([tokens, new[:, None]], 1)
    return tokens


# ---- Training ------------------------------------------------------------------------------------
def orthogonal(m):
    """The matrix with its singular values brought near 1 (Newton-Schulz; Jordan et al. 2024)."""
    x = (m if m.shape[0] <= m.shape[1] else m.T) / max(np.linalg.norm(m), 1e-7)
    for _ in range(5):
        s = x @ x.T
        x = 3.4445 * x + (2.0315 * s @ s - 4.775 * s) @ x
    return x if m.shape[0] <= m.shape[1] else x.T


def step(moments, number):
    """Muon for the matrices of the blocks, AdamW for the rest; the rate rises, then falls."""
    part = max(0, number - WARMUP) / (STEPS - WARMUP)
    rate = RATE * min((number + 1) / WARMUP, 0.5 + 0.5 * math.cos(math.pi * part))
    norm = 1e-6 + math.sqrt(sum(float((w.d * w.d).sum()) for w in WEIGHTS.values()))
    for name, weight in WEIGHTS.items():
        w, g, (mean, square) = weight.y, weight.d / max(1, norm), moments.get(name, (0, 0))
        if ".blocks." in name and w.ndim == 2:
            mean = 0.95 * mean + 0.05 * g
            ahead = orthogonal(0.95 * mean + 0.05 * g)
            move = 3 * (0.2 * max(w.shape) ** 0.5 * ahead + 0.3 * w)
        else:
            mean, square = 0.9 * mean + 0.1 * g, 0.98 * square + 0.02 * g * g
            first, second = mean / (1 - 0.9 ** (number + 1)), square / (1 - 0.98 ** (number + 1))
            move = first / (np.sqrt(second) + 1e-8) + (0.3 * w if w.ndim == 2 else 0)
        moments[name], weight.y = (mean, square), np.float32(w - rate * move)


if __name__ == "__main__":
    moments, rng, start = {}, np.random.default_rng(0), time.perf_counter()
    for number in range(STEPS):
        told = losses(*batch(rng))
        step(moments, number)
        if number % 100 in (9, 99):
            whole = (time.perf_counter() - start) * STEPS / (number + 1)
            line = "step {:4}: contrastive {:.3f}, caption {:.3f}; of about {:.0f} s"
            print(line.format(number + 1, *told, whole), flush=True)
    for title, pairs in ("pairs of colour and shape as in training", SEEN), ("new pairs", KEPT):
        pictures, tokens = batch(np.random.default_rng(1), pairs, 256)
        found = tokens[(see(pictures)[0].y @ read(tokens)[0].y.T).argmax(1)]
        three = tokens, write(pictures), found
        each = np.array([[" ".join(WORDS[i] for i in row if i > END) for row in x] for x in three])
        right, first = (each[1:] == each[0]).mean(1)
        print(f"\n{title}: captions right {right:.1%}, of 256 the right one found {first:.1%}")
        print(*("x="[true == told] + f" {told}" for true, told, _ in each.T[:8]), sep="\n")
