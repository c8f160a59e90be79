"""A CoCa as programs that other runtimes run, with their weights inside: what export.py writes.

    image    pixels [B, I, I, 3], uint8                  ->  vectors [B, E], tokens [B, S, M]
    text     ids [B, T], padded                          ->  vectors [B, E]
    memory   tokens [B, S, M]                            ->  memory [m, 2, B, S, H, K]
    step     token [B], past [n, 2, B, P, H, K], memory  ->  logits [B, V], past of P + 1

`memory` is the image's keys and values for the m layers that read it, made once for a caption;
`past` those of the P tokens read so far for all n layers (P is 0 at first). B, T and P may be any.
Logits of ids that are never written are -inf.
"""

from __future__ import annotations

import keyword
from dataclasses import dataclass

import torch
from torch.export import Dim

from ..config import PAD, START, UNKNOWN, Config
from ..engine.attention import mlp_layer
from ..engine.model import encode_image, encode_text
from ..engine.ops import attention, embedding, layer_norm, linear, use
from ..engine.vision import normalise

TRACED = (
    3  # samples that a program is traced with, and tokens; another number than it is checked on
)


class Weights(torch.nn.Module):
    """A tree of tensors as a module: a program's weights have the names of the tree (and `class`,
    which is a word of Python's, `class_`)."""

    def __init__(self, tree: dict) -> None:
        super().__init__()
        for name, value in tree.items():
            if isinstance(value, dict):
                self.add_module(name, Weights(value))
            else:
                name += "_" * keyword.iskeyword(name)
                self.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))

    def tree(self) -> dict:
        """The tree again, of whatever the parameters are now."""
        inner = {name: child.tree() for name, child in self.named_children()}
        own = self.named_parameters(recurse=False)
        return inner | {name.removesuffix("_"): value for name, value in own}


class Part(torch.nn.Module):
    """Some of a CoCa's weights, and the config of all."""

    def __init__(self, params: dict, config: Config) -> None:
        super().__init__()
        self.weights, self.config = Weights(params), config


class ImageTower(Part):
    """What the image encoder and its poolers make; what no loss has trained is left out."""

    def forward(self, pixels):
        pixels = normalise(pixels.float() / 255, self.config)
        vectors, tokens = encode_image(self.weights.tree(), self.config, pixels)
        if not self.config.writes:
            return (vectors,)
        return (vectors, tokens) if self.config.compares else (tokens,)


class TextTower(Part):
    def forward(self, ids):
        return (encode_text(self.weights.tree(), self.config, ids)[0],)


class Memory(Part):
    def forward(self, tokens):
        params, heads = self.weights.tree(), self.config.text_heads
        layers = [params["blocks"][str(i)] for i in range(self.config.multimodal_layers)]
        read = [
            key_value(layer_norm(tokens, layer["norm_memory"]), layer["cross"], heads)
            for layer in layers
        ]
        return (torch.stack(read),)


class Step(Part):
    def __init__(self, params: dict, config: Config) -> None:
        super().__init__(params, config)
        self.register_buffer("never", torch.zeros(config.vocabulary))
        self.never[[PAD, START, UNKNOWN]] = -torch.inf

    def forward(self, token, past, memory):
        config, params = self.config, self.weights.tree()
        at, grown = past.shape[3], []
        x_B1D = embedding(token, params["text"]["token"])[:, None]
        x_B1D = x_B1D + params["text"]["position"][at : at + 1]
        for i in range(config.unimodal_layers):
            layer = params["text"]["blocks"][str(i)]
            x_B1D = self._read(x_B1D, layer, past, grown)
            x_B1D = mlp_layer(x_B1D, layer["norm_mlp"], layer["mlp"], config.gelu)
        for i in range(config.multimodal_layers):
            layer = params["decoder"]["blocks"][str(i)]
            x_B1D = self._read(x_B1D, layer, past, grown)
            if config.multimodal_mlps == 2:
                x_B1D = mlp_layer(x_B1D, layer["norm_inner"], layer["inner_mlp"], config.gelu)
            n_B1D = layer_norm(x_B1D, layer["norm_cross"])
            x_B1D = x_B1D + self._attend(n_B1D, layer["cross"], memory[i])
            x_B1D = mlp_layer(x_B1D, layer["norm_mlp"], layer["mlp"], config.gelu)
        n_BD = layer_norm(x_B1D[:, 0], params["decoder"]["norm"])
        return linear(n_BD, params["decoder"]["head"]) + self.never, torch.stack(grown)

    def _read(self, x_B1D, layer, past, grown):
        n_B1D = layer_norm(x_B1D, layer["norm_attention"])
        new = key_value(n_B1D, layer["attention"], self.config.text_heads)
        grown.append(torch.cat([past[len(grown)], new], 2))
        return x_B1D + self._attend(n_B1D, layer["attention"], grown[-1])

    def _attend(self, x_B1D, params, both):
        q_B1HK = linear(x_B1D, params["query"]).unflatten(-1, (self.config.text_heads, -1))
        return linear(attention(q_B1HK, both[0], both[1]).flatten(-2), params["output"])


def key_value(x_BSD, params, heads):
    """Keys and values as one, [2, B, S, H, K]."""
    both = [linear(x_BSD, params[name]).unflatten(-1, (heads, -1)) for name in ("key", "value")]
    return torch.stack(both)


@dataclass(frozen=True)
class Program:
    """One of them before it is traced: what computes it, on what, and what comes out."""

    module: Part
    inputs: dict[str, torch.Tensor]
    dynamic: dict[str, dict[int, Dim]]
    outputs: tuple[str, ...]

    def traced(self) -> torch.export.ExportedProgram:
        """As operations of torch's, for any batch, length and past."""
        given = tuple(self.inputs.values())
        with use("torch"), torch.no_grad():  # strict: len(x) of a tensor stays a symbol
            return torch.export.export(
                self.module.eval(), given, dynamic_shapes=tuple(self.dynamic.values()), strict=True
            )


def programs(params: dict, config: Config) -> dict[str, Program]:
    """{name: Program} of what the losses of a model have trained. params: tensors on a CPU."""
    c, found = config, {}
    batch = Dim("batch")
    pixels = torch.zeros(TRACED, c.image_size, c.image_size, 3, dtype=torch.uint8)
    tower = {name: params[name] for name in params if name.startswith(("image", "pooler"))}
    outputs = ("vectors",) * c.compares + ("tokens",) * c.writes
    found["image"] = Program(
        ImageTower(tower, c), {"pixels": pixels}, {"pixels": {0: batch}}, outputs
    )
    if c.compares:
        text = {name: params[name] for name in params if name.startswith("text")}
        ids = torch.full((TRACED, min(TRACED, c.text_length)), START)
        length = Dim("length", max=c.text_length)
        found["text"] = Program(
            TextTower(text, c), {"ids": ids}, {"ids": {0: batch, 1: length}}, ("vectors",)
        )
    if c.writes:
        tokens = torch.zeros(TRACED, memory_tokens(c), c.memory_width)
        cross = {"blocks": of_memory(params["decoder"]["blocks"], True)}
        found["memory"] = Program(
            Memory(cross, c), {"tokens": tokens}, {"tokens": {0: batch}}, ("memory",)
        )
        past = torch.zeros(past_shape(c, TRACED, 2))
        read = torch.zeros(c.multimodal_layers, 2, *tokens.shape[:2], *past.shape[4:])
        inputs = {"token": torch.full((TRACED,), START), "past": past, "memory": read}
        dynamic = {
            "token": {0: batch},
            "past": {2: batch, 3: Dim("past", max=c.text_length - 1)},
            "memory": {2: batch},
        }
        text = {name: params["text"][name] for name in ("token", "position", "blocks")}
        blocks = of_memory(params["decoder"]["blocks"], False)
        parts = {"text": text, "decoder": params["decoder"] | {"blocks": blocks}}
        found["step"] = Program(Step(parts, c), inputs, dynamic, ("logits", "past_grown"))
    return found


def memory_tokens(config: Config) -> int:
    """S: how many tokens of an image the decoder reads."""
    if config.pooler == "none":
        return config.patches + (config.stem == "clip")
    return config.caption_queries


def past_shape(config: Config, batch: int, length: int) -> tuple[int, ...]:
    """[n, 2, B, P, H, K] of what has been read."""
    c = config
    heads = c.text_heads, c.text_width // c.text_heads
    return c.unimodal_layers + c.multimodal_layers, 2, batch, length, *heads


def of_memory(blocks, wanted):
    """Multimodal layers with only the weights that `Memory` has, or without them."""
    kept = {}
    for name, layer in blocks.items():
        both = {kind: layer["cross"][kind] for kind in ("key", "value")}
        rest = {kind: layer["cross"][kind] for kind in ("query", "output")}
        own = {key: value for key, value in layer.items() if key not in ("norm_memory", "cross")}
        kept[name] = (
            {"norm_memory": layer["norm_memory"], "cross": both}
            if wanted
            else own | {"cross": rest}
        )
    return kept
