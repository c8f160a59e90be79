"""Reference and engine behind one face, NumPy in and out, so that a property is written once."""

import numpy as np
import torch

from minicoca.engine import decoding as engine_decoding
from minicoca.engine import generate as engine_generate
from minicoca.engine import model as engine
from minicoca.engine import ops as engine_ops
from minicoca.engine import text as engine_text
from minicoca.params import flatten, tree_map, unflatten
from minicoca.reference import decoding as reference_decoding
from minicoca.reference import generate as reference_generate
from minicoca.reference import model as reference


class Reference:
    name = "reference"
    CoCa = reference_generate.CoCa

    @staticmethod
    def outputs(params, config, images, tokens):
        """loss, contrastive, caption, image, text, logits (of valid positions; elsewhere 0)."""
        outputs, _ = reference.coca(params, config, images, tokens)
        valid = (tokens[:, 1:] != 0)[..., None]
        return outputs | {"logits": np.where(valid, outputs["logits"], 0)}

    @staticmethod
    def gradients(params, config, images, tokens):
        _, cache = reference.coca(params, config, images, tokens)
        return reference.coca_backward(1.0, cache)[0]

    generate = staticmethod(reference_generate.generate)
    filter_logits = staticmethod(reference_decoding.filter_logits)
    restrict_logits = staticmethod(reference_decoding.restrict_logits)

    @staticmethod
    def n_best(params, config, images, prompt, **how):
        """[[(ids, score), ...] of each image], best first."""
        return [
            reference_generate.beam_search(params, config, image, prompt, **how) for image in images
        ]

    @classmethod
    def beam_search(cls, *given, **how):
        return [own[0] for own in cls.n_best(*given, **how)]


class Engine:
    name = "engine"
    CoCa = engine_generate.CoCa

    @staticmethod
    def outputs(params, config, images, tokens):
        p, x, t = tree_map(torch.tensor, params), torch.tensor(images), torch.tensor(tokens)
        with torch.no_grad():
            outputs = engine.coca(p, config, x, t)
            rows = engine_text.TextRows(t, config)
            hidden = engine.encode_text(p, config, t, rows)[1]
            memory = engine.encode_image(p, config, x)[1]
            packing = rows.decoder_packing
            n = engine_text.multimodal_decoder(hidden, memory, p["decoder"], config, packing)
            logits = engine_ops.linear(n, p["decoder"]["head"])
            logits = packing.pad(logits) if packing else logits
        valid = (tokens[:, 1:] != 0)[..., None]
        numpy = {name: value.numpy() for name, value in outputs.items()}
        return numpy | {"logits": np.where(valid, logits.numpy(), 0)}

    @staticmethod
    def gradients(params, config, images, tokens):
        leaves = {k: torch.tensor(v, requires_grad=True) for k, v in flatten(params).items()}
        x, t = torch.tensor(images), torch.tensor(tokens)
        engine.coca(unflatten(leaves), config, x, t)["loss"].backward()
        found = {
            k: np.zeros(v.shape) if v.grad is None else v.grad.numpy() for k, v in leaves.items()
        }
        return unflatten(found)

    @staticmethod
    def generate(params, config, images, prompt, **how):
        p = tree_map(torch.tensor, params)
        prompt = torch.tensor(prompt)
        return engine_generate.generate(p, config, torch.tensor(images), prompt, **how).numpy()

    @staticmethod
    def filter_logits(logits, *how):
        return engine_decoding.filter_logits(torch.tensor(logits), *how).numpy()

    @staticmethod
    def restrict_logits(logits, tokens, written, **how):
        logits, tokens = torch.tensor(logits), torch.tensor(tokens)
        return engine_decoding.restrict_logits(logits, tokens, written, **how).numpy()

    @staticmethod
    def n_best(params, config, images, prompt, **how):
        p = tree_map(torch.tensor, params)
        prompt = torch.tensor(prompt)
        found = engine_generate.beam_search(p, config, torch.tensor(images), prompt, **how)
        return [[(ids.numpy(), score) for ids, score in own] for own in found]

    @classmethod
    def beam_search(cls, *given, **how):
        return [own[0] for own in cls.n_best(*given, best=1, **how)]


BACKENDS = [Reference, Engine]
