"""CoCa once more, of torch's own modules: what reference and engine must both equal.

`coca` reads a tree of ours. `OpenClip` has open_clip's parameters under open_clip's names, and its
stacked query, key and value are read by torch.nn.MultiheadAttention itself. Written from the papers
and from the names and shapes of open_clip's state dict.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn


def multi_head_attention(x, memory, p, heads, mask=None):
    """Our layer's parameters in torch.nn.MultiheadAttention; `mask` True where a query may look."""
    module = nn.MultiheadAttention(
        x.shape[-1], heads, kdim=memory.shape[-1], vdim=memory.shape[-1], batch_first=True
    ).to(x)
    weights = [p[name]["weight"].T for name in ("query", "key", "value")]
    names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    state = dict(zip(names, weights, strict=True))
    if module.in_proj_weight is not None:
        state = {"in_proj_weight": torch.cat(weights)}
    state["in_proj_bias"] = torch.cat([p[name]["bias"] for name in ("query", "key", "value")])
    state |= {"out_proj.weight": p["output"]["weight"].T, "out_proj.bias": p["output"]["bias"]}
    module.load_state_dict(state)
    forbidden = None if mask is None else ~mask
    if forbidden is not None and forbidden.ndim == 3:
        forbidden = forbidden.repeat_interleave(heads, 0)
    return module(x, memory, memory, attn_mask=forbidden, need_weights=False)[0]


def _norm(x, p):
    return F.layer_norm(x, x.shape[-1:], p["scale"], p["bias"])


def _mlp(x, p, config):
    hidden = F.linear(x, p["up"]["weight"].T, p["up"]["bias"])
    hidden = nn.GELU("tanh" if config.gelu == "tanh" else "none")(hidden)
    return F.linear(hidden, p["down"]["weight"].T, p["down"]["bias"])


def _block(x, p, heads, config, mask=None, mlp="mlp", norm="norm_mlp"):
    n = _norm(x, p["norm_attention"])
    x = x + multi_head_attention(n, n, p["attention"], heads, mask)
    return x + _mlp(_norm(x, p[norm]), p[mlp], config)


def _image_tokens(images, p, config):
    kernel = p["patch"]["weight"].unflatten(0, (config.patch_size, config.patch_size, 3))
    x = F.conv2d(images.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1), stride=config.patch_size)
    x = x.flatten(2).transpose(1, 2) + p["patch"].get("bias", 0)
    if config.stem == "clip":
        x = torch.cat([p["class"].expand(len(x), 1, -1), x], 1)
    x = x + p["position"]
    if config.stem == "clip":
        x = _norm(x, p["norm_pre"])
    for i in range(config.image_layers):
        x = _block(x, p["blocks"][str(i)], config.image_heads, config)
    return x


def _pool(x, p, config):
    k, q = _norm(x, p["norm_key"]), _norm(p["queries"], p["norm_query"])
    q = q.expand(len(x), *q.shape)
    pooled = multi_head_attention(q, k, p["attention"], config.pooler_heads)
    return _norm(pooled, p["norm_output"])


def _pooled(x, p, config):
    """(contrast [B, D], memory), as the paper and DESIGN's list of poolers say."""
    if config.pooler == "shared":
        y = _pool(x, p["shared"], config)
        return y[:, 0], y[:, 1:]
    memory = x if config.pooler == "none" else _pool(x, p["caption"], config)
    return _pool(memory if config.pooler == "cascade" else x, p["contrast"], config)[:, 0], memory


def _seen(tokens, legacy):
    """[B, T + 1, T + 1]: a token sees what came before; CLS, last, sees what is no padding and
    itself. `legacy`: open_clip's, whose mask of padding stands one place to the right."""
    real = tokens != 0
    one = torch.ones(len(tokens), 1, dtype=torch.bool)
    keys = torch.cat([one, real] if legacy else [real, one], 1)
    seen = torch.ones(keys.shape[1], keys.shape[1]).tril().bool().repeat(len(tokens), 1, 1)
    seen[:, -1] &= keys
    return seen


def _text(tokens, p, config):
    x = p["token"][tokens] + p["position"][: tokens.shape[1]]
    x = torch.cat([x, p["cls"].expand(len(x), 1, -1)], 1)
    mask = _seen(tokens, config.legacy_cls_mask)
    for i in range(config.unimodal_layers):
        x = _block(x, p["blocks"][str(i)], config.text_heads, config, mask)
    return _norm(x[:, -1], p["norm"]), x[:, :-1]


def _logits(x, memory, p, config):
    mask = torch.ones(x.shape[1], x.shape[1]).tril().bool()
    for i in range(config.multimodal_layers):
        q, heads = p["blocks"][str(i)], config.text_heads
        n = _norm(x, q["norm_attention"])
        x = x + multi_head_attention(n, n, q["attention"], heads, mask)
        if config.multimodal_mlps == 2:
            x = x + _mlp(_norm(x, q["norm_inner"]), q["inner_mlp"], config)
        n, m = _norm(x, q["norm_cross"]), _norm(memory, q["norm_memory"])
        x = x + multi_head_attention(n, m, q["cross"], heads)
        x = x + _mlp(_norm(x, q["norm_mlp"]), q["mlp"], config)
    return _norm(x, p["norm"]) @ p["head"]["weight"]


def coca(p, config, images, tokens):
    """{image, text: unit vectors [B, E], logits [B, T - 1, V]} of a tree of ours, in torch."""
    contrast, memory = _pooled(_image_tokens(images, p["image"], config), p["pooler"], config)
    cls, x = _text(tokens, p["text"], config)
    if config.embed_width:
        contrast = contrast @ p["image_projection"]["weight"]
        cls = cls @ p["text_projection"]["weight"]
    logits = _logits(x[:, :-1], memory, p["decoder"], config)
    return {"image": F.normalize(contrast, dim=-1), "text": F.normalize(cls, dim=-1),
            "logits": logits}  # fmt: skip


# --- open_clip's names ----------------------------------------------------------------------------


class _Holder(nn.Module):
    """Parameters and modules under the names that are given."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            own = nn.Parameter(0.5 * torch.randn(part)) if isinstance(part, tuple) else part
            setattr(self, name, own)


class _Layer(_Holder):
    def __init__(self, width, heads, hidden, cross=False):
        mlp = nn.Sequential(OrderedDict(
            c_fc=nn.Linear(width, hidden), gelu=nn.GELU(), c_proj=nn.Linear(hidden, width)
        ))  # fmt: skip
        super().__init__(
            attn=nn.MultiheadAttention(width, heads, batch_first=True), mlp=mlp,
            ln_1=nn.LayerNorm(width), ln_2=nn.LayerNorm(width),
            **({"ln_1_kv": nn.LayerNorm(width)} if cross else {}),
        )  # fmt: skip

    def forward(self, x, memory=None, forbidden=None):
        n = self.ln_1(x)
        m = n if memory is None else self.ln_1_kv(memory)
        x = x + self.attn(n, m, m, attn_mask=forbidden, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


def _layers(count, *sizes, **how):
    return nn.ModuleList(_Layer(*sizes, **how) for _ in range(count))


class OpenClip(nn.Module):
    """open_clip's CoCa of a config's sizes, every parameter random."""

    def __init__(self, c):
        super().__init__()
        D, W, E = c.text_width, c.image_width, c.embed_width
        pooler = _Holder(
            query=(c.caption_queries + 1, D), ln_q=nn.LayerNorm(D), ln_k=nn.LayerNorm(W),
            attn=nn.MultiheadAttention(D, c.pooler_heads, kdim=W, vdim=W, batch_first=True),
        )  # fmt: skip
        sizes, image_sizes = (D, c.text_heads, c.text_hidden), (W, c.image_heads, c.image_hidden)
        self.visual = _Holder(
            class_embedding=(W,), positional_embedding=(c.patches + 1, W), proj=(D, E),
            conv1=nn.Conv2d(3, W, c.patch_size, c.patch_size, bias=False),
            ln_pre=nn.LayerNorm(W), ln_post=nn.LayerNorm(D), attn_pool=pooler,
            transformer=_Holder(resblocks=_layers(c.image_layers, *image_sizes)),
        )  # fmt: skip
        self.text = _Holder(
            cls_emb=(D,), positional_embedding=(c.text_length + 1, D), text_projection=(D, E),
            token_embedding=nn.Embedding(c.vocabulary, D), ln_final=nn.LayerNorm(D),
            transformer=_Holder(resblocks=_layers(c.unimodal_layers, *sizes)),
        )  # fmt: skip
        self.text_decoder = _Holder(
            resblocks=_layers(c.multimodal_layers, *sizes), ln_final=nn.LayerNorm(D),
            cross_attn=_layers(c.multimodal_layers, *sizes, cross=True),
            text_projection=(D, c.vocabulary),
        )  # fmt: skip
        self.logit_scale = nn.Parameter(torch.tensor(1.7))
        self.heads, self.legacy = c.text_heads, c.legacy_cls_mask
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.ndim:  # norms and biases are away from one and zero too
                    parameter += 0.2 * torch.randn(parameter.shape)

    def forward(self, images, tokens):
        """images [B, I, I, 3], tokens [B, T], T the text's whole length."""
        v, pool = self.visual, self.visual.attn_pool
        x = v.conv1(images.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        x = torch.cat([v.class_embedding.expand(len(x), 1, -1), x], 1)
        x = v.ln_pre(x + v.positional_embedding)
        for layer in v.transformer.resblocks:
            x = layer(x)
        keys, queries = pool.ln_k(x), pool.ln_q(pool.query).expand(len(x), -1, -1)
        y = v.ln_post(pool.attn(queries, keys, keys, need_weights=False)[0])
        image, memory = y[:, 0] @ v.proj, y[:, 1:]
        t = self.text
        x = torch.cat([t.token_embedding(tokens), t.cls_emb.expand(len(tokens), 1, -1)], 1)
        x = x + t.positional_embedding
        forbidden = ~_seen(tokens, self.legacy).repeat_interleave(self.heads, 0)
        for layer in t.transformer.resblocks:
            x = layer(x, forbidden=forbidden)
        text, x = t.ln_final(x[:, -1]) @ t.text_projection, x[:, :-2]  # the last predicts nothing
        d, later = self.text_decoder, torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
        for layer, cross in zip(d.resblocks, d.cross_attn, strict=True):
            x = cross(layer(x, forbidden=later), memory)
        return {"image": F.normalize(image, dim=-1), "text": F.normalize(text, dim=-1),
                "logits": d.ln_final(x) @ d.text_projection,
                "scale": self.logit_scale.exp()}  # fmt: skip
