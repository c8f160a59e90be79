"""VLMo (Bao et al. 2021, arXiv 2111.02358): one transformer for images, texts and pairs. They
share its attention; the MLP is an image's, a text's or, in the upper layers and for pairs, both's.
With `experts`, a router chooses the MLP of every token in place of that (Switch, 2101.03961).

Three losses: contrastive of images and texts by themselves; matching (matching.py) and masked words
of pairs. The lower layers are unimodal_layers, the upper ones multimodal_layers; all is read both
ways. Letters: B pairs, R rows that are asked about, X those and the B that have masked words, S the
tokens of text and image.
"""

from dataclasses import replace

import numpy as np

from ...config import PAD
from ..answers import answer_loss, answer_loss_backward
from ..losses import (
    caption_loss,
    caption_loss_backward,
    contrastive_loss,
    contrastive_loss_backward,
)
from ..ops import layer_norm, layer_norm_backward, linear, linear_backward
from .experts import expert_blocks, expert_blocks_backward
from .layers import added, of_all
from .matching import right_answers, rows_asked
from .modalities import alone, alone_backward, read, read_backward, seen, seen_backward


def together(words_XTD, image_XND, params, config, settings, real_XS):
    """Pairs -> (n [X, S, D] that heads read, the layers' balance, cache)."""
    x_XSD = np.concatenate([words_XTD, image_XND], 1)
    parts = {"text": words_XTD.shape[1], "image": image_XND.shape[1]}
    given = params["blocks"], config, settings, real_XS, parts
    x_XSD, balance, cache = expert_blocks(x_XSD, *given, fused=True)
    n_XSD, norm_cache = layer_norm(x_XSD, params["norm"])
    return n_XSD, balance, (parts["text"], cache, norm_cache)


def together_backward(dn_XSD, dbalance, cache):
    words, blocks_cache, norm_cache = cache
    dx_XSD, dnorm = layer_norm_backward(dn_XSD, norm_cache)
    dx_XSD, dblocks = expert_blocks_backward(dx_XSD, dbalance, blocks_cache)
    return dx_XSD[:, :words], dx_XSD[:, words:], {"blocks": dblocks, "norm": dnorm}


def loss(params, config, settings, batch):
    """-> ({loss, contrastive, matching, words, balance, image [B, D], text [B, D]}, cache)."""
    tokens, masked = batch["tokens"], batch["masked"]
    texts, real, text_cache = read(tokens, params)
    blanks, _, blank_cache = read(np.where(masked, config.vocabulary, tokens), params)
    images, image_cache = seen(batch["images"], params, config)
    there = np.ones(images.shape[:2], bool)
    image_BD, _, first, alone_image = alone(images, params, config, settings, there, "image")
    text_BD, _, second, alone_text = alone(texts, params, config, settings, real, "text")
    contrastive, contrastive_cache = contrastive_loss(image_BD, text_BD, params["log_temperature"])
    scores_BB = np.exp(-params["log_temperature"].real) * (image_BD.real @ text_BD.real.T)
    image_R, text_R = rows_asked(scores_BB, tokens, batch["noise"])
    image_X = np.concatenate([image_R, np.arange(len(tokens))])  # (1)
    words_X = np.concatenate([text_R, len(tokens) + np.arange(len(tokens))])  # (2)
    real_XS = np.concatenate([np.concatenate([real, real])[words_X], there[image_X]], 1)
    words = np.concatenate([texts, blanks])[words_X]
    n, third, pair_cache = together(words, images[image_X], params, config, settings, real_XS)
    asked, T = len(image_R), tokens.shape[1]
    says, says_cache = linear(n[:asked, T], params["matching"])  # (3)
    matching, matching_cache = answer_loss(says, right_answers(asked, len(tokens), n.real.dtype))
    logits, words_cache = linear(n[asked:, :T], params["words"])  # (4)
    found, found_cache = caption_loss(logits, np.where(masked, tokens, PAD))
    balance = first + second + third
    weights = config.contrastive_weight, settings.matching_weight, settings.words_weight
    weights += (settings.balance_weight,)
    losses = {"contrastive": contrastive, "matching": matching, "words": found, "balance": balance}
    value = sum(w * one for w, one in zip(weights, losses.values(), strict=True))
    inputs = text_cache, blank_cache, image_cache, alone_image, alone_text, pair_cache
    heads = contrastive_cache, says_cache, matching_cache, words_cache, found_cache
    rows = n.shape, image_X, words_X, asked
    outputs = {"loss": value} | losses | {"image": image_BD, "text": text_BD}
    return outputs, (params, weights, inputs, heads, rows)


def loss_backward(dloss, cache):
    params, weights, inputs, heads, (n_shape, image_X, words_X, asked) = cache
    text_cache, blank_cache, image_cache, alone_image, alone_text, pair_cache = inputs
    contrastive_cache, says_cache, matching_cache, words_cache, found_cache = heads
    dcontrastive, dmatching, dfound, dbalance = (weight * dloss for weight in weights)
    dsays = answer_loss_backward(dmatching, matching_cache)
    dlogits = caption_loss_backward(dfound, found_cache)
    dn, T = np.zeros(n_shape, dsays.dtype), dlogits.shape[1]
    dn[:asked, T], dhead = linear_backward(dsays, says_cache)  # from (3)
    dn[asked:, :T], dwords = linear_backward(dlogits, words_cache)  # from (4)
    dwords_read, dimages_read, of_pairs = together_backward(dn, dbalance, pair_cache)
    dimage_BD, dtext_BD, dtemperature = contrastive_loss_backward(dcontrastive, contrastive_cache)
    dimages, of_images = alone_backward(dimage_BD, dbalance, alone_image)
    dtexts, of_texts = alone_backward(dtext_BD, dbalance, alone_text)
    np.add.at(dimages, image_X, dimages_read)  # from (1): each is read in several rows too
    dwritten = np.concatenate([dtexts, np.zeros_like(dtexts)])  # texts, then the masked ones
    np.add.at(dwritten, words_X, dwords_read)  # from (2)
    dtexts, dblanks = np.split(dwritten, 2)
    dparams = added(of_pairs, added(of_images, of_texts)) | seen_backward(dimages, image_cache)
    dparams |= added(read_backward(dtexts, text_cache), read_backward(dblanks, blank_cache))
    dparams |= {"matching": dhead, "words": dwords, "log_temperature": dtemperature}
    return of_all(dparams, params)  # an expert may have had nothing to do


def used(settings):
    """The settings of a model that is used, not trained: an expert has a place for every token that
    wants it, so that what is made of an image or a text does not depend on its batch."""
    return replace(settings, capacity=0.0)


def image_features(params, config, settings, images):
    """-> (unit vectors [B, D], nothing that a decoder reads, tokens [B, N + 1, D])."""
    x_BSD, _ = seen(images, params, config)
    real_BS = np.ones(x_BSD.shape[:2], bool)
    image_BD, x_BSD, *_ = alone(x_BSD, params, config, used(settings), real_BS, "image")
    return image_BD, None, x_BSD


def text_features(params, config, settings, tokens_BT):
    """-> (unit vectors [B, D], nothing that a decoder begins with)."""
    x_BSD, real_BS, _ = read(tokens_BT, params)
    return alone(x_BSD, params, config, used(settings), real_BS, "text")[0], None


def matcher(params, config, settings, images, tokens_RT):
    """-> a function of P pairs, of which image and text each is: logits [P, 2] of no and yes."""
    (texts, real_RS, _), (shown, _) = read(tokens_RT, params), seen(images, params, config)

    def matches(image_P, text_P):
        words, image = texts[text_P], shown[image_P]
        real_PS = np.concatenate([real_RS[text_P], np.ones(image.shape[:2], bool)], 1)
        n, *_ = together(words, image, params, config, used(settings), real_PS)
        return linear(n[:, tokens_RT.shape[1]], params["matching"])[0]

    return matches
