"""The front door for Python: `load` a trained CoCa and use it, as the commands do.

Wherever images are taken, each is a file's path, a PIL image, or an array: uint8 [height, width, 3]
in RGB, or [height, width] of grey. Floats are refused, for they do not say their range. One image
in, one result out; a list (or an array [n, height, width, 3]) in, a list out. So with texts.

An image or a text that cannot be used raises ValueError, which says why; a file that cannot be read
just now is an OSError. What a model does not read of a text (the end of one that is too long, words
that it never saw) is told by `warnings.warn`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .config import Config
from .data.files import Report
from .squares import FITS
from .tasks import embed_texts, no_vectors, unread
from .tasks.captioning import Candidate, caption, captions, decoding
from .tasks.explain import Explanation, explain
from .tasks.files import Fitting, Picture, decoded, embed, find_images
from .tasks.given import listed, text_of, texts_of
from .tasks.indexed import open_index, search
from .tasks.matching import matches
from .tasks.questions import Answer, answer, for_each, settled
from .tasks.retrieval import Found, best
from .tasks.scoring import Scores, demand_ranking, reranked, scores
from .tasks.zero_shot import (
    Classification,
    check_labels,
    classified,
    classifier,
    fill_templates,
)
from .tokenizer import Tokenizer
from .training.checkpoint import find_run, load_model

Pictures = Picture | Iterable[Picture]


def load(folder_or_name: str | os.PathLike, device: str = "auto", backend: str = "auto") -> Model:
    """A trained model: a run's folder, the name of one in runs/, or one that comes with minicoca,
    "emoji" or "shapes".

    backend: "auto", "torch", "triton" or "numpy"; device: a name of torch's, or "auto", a GPU where
    there is one. Models of different backends do not disturb each other. Raises ValueError where
    there is no such run, where its files are not what they should be, or where this machine does
    not have the device or the backend.
    """
    said: list[str] = []
    coca, tokenizer = load_model(find_run(folder_or_name), backend, device, said.append)
    _tell(said)
    return Model(coca, tokenizer)


class Model:
    """A trained CoCa to use; `load` makes one.

    fit, wherever images are taken: how one that is no square becomes one. "crop" keeps the middle,
    "pad" all of it beside black, "squash" all of it, out of proportion. max_pixels: the most that
    are decoded of a file (None: 64 million). A JPEG of more is decoded smaller, which a warning
    tells; others are refused.
    """

    def __init__(self, coca: Any, tokenizer: Tokenizer) -> None:
        """coca: the CoCa of either backend."""
        self.coca, self.tokenizer = coca, tokenizer
        self.max_pixels: int | None = None

    @property
    def config(self) -> Config:
        """Its settings, among them image_size, text_length and backend."""
        return self.coca.config

    def __repr__(self) -> str:
        c = self.config
        sizes = f"images of {c.image_size} pixels, texts of {c.text_length} tokens"
        return f"<minicoca Model: {sizes}, backend {c.backend}>"

    def caption(
        self,
        images: Pictures,
        prompt: str = "",
        *,
        beams: int = 0,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        min_length: int = 0,
        max_length: int = 0,
        repetition_penalty: float = 1.0,
        no_repeat_ngram: int = 0,
        length_penalty: float | None = None,
        beam_groups: int | None = None,
        diversity: float | None = None,
        best: int | None = None,
        rerank: bool = False,
        fit: str = "crop",
    ) -> str | list[str] | list[Candidate] | list[list[Candidate]]:
        """A caption for each image, which begins with the prompt: the likeliest token each time, or
        found by a search with `beams`, or sampled at a `temperature`, from the `top_k` likeliest
        tokens or from those that have `top_p` of the probability.

        min_length, max_length: how many tokens are written, the end of the caption being one.
        repetition_penalty: over 1, a token that the text holds already is less likely.
        no_repeat_ngram: no so many tokens in a row stand twice; 0: they may.
        length_penalty: of beams; a score is a log probability over the length to this power (1).
        beam_groups, diversity: beams in groups that choose other tokens than the groups before.
        best: instead of one caption the `best` for each image, a list of Candidate (caption, score,
            cosine), the best first.
        rerank: those first (or the one) whose text the model finds nearest to the image.

        Samples are a function of the seed (0 if not given) and of an image's place in the list.
        Raises ValueError for options out of range or that exclude each other, and for a prompt that
        is too long or holds what the model never saw.
        """
        options = dict(min_length=min_length, max_length=max_length, best=best, rerank=rerank)
        options |= dict(repetition_penalty=repetition_penalty, no_repeat_ngram=no_repeat_ngram)
        options |= dict(length_penalty=length_penalty, beam_groups=beam_groups)
        how = decoding(beams, temperature, top_k, top_p, seed, diversity=diversity, **options)
        given, one = listed(images)
        fitting, told = self._fitting(fit)
        batches = decoded(given, self.config.image_size, None, fitting)
        parts = captions(self.coca, self.tokenizer, batches, text_of(prompt), **how)
        found = [caption for _, own in parts for caption in own]
        _tell(told)
        if rerank and best is None:
            found = [own[0].caption for own in found]
        return found[0] if one else found

    def embed_images(self, images: Pictures, *, fit: str = "crop") -> np.ndarray:
        """Unit vectors [images, E], or [E] of one image."""
        given, one = listed(images)
        fitting, told = self._fitting(fit)
        vectors = self._vectors(given, fitting)
        _tell(told)
        return vectors[0] if one else vectors

    def embed_texts(self, texts: str | Iterable[str]) -> np.ndarray:
        """Unit vectors [texts, E], or [E] of one text."""
        given, one = texts_of(texts)
        _tell(unread(self.coca, self.tokenizer, given))
        vectors = embed_texts(self.coca, self.tokenizer, given)
        return vectors[0] if one else vectors

    def classify(
        self,
        images: Pictures,
        labels: Sequence[str] | Mapping[str, Sequence[str]],
        *,
        templates: str | Sequence[str] = "{}",
        by: str = "cosine",
        rule: str | None = None,
        fit: str = "crop",
    ) -> Classification | list[Classification]:
        """Which of the labels fits each image: its name, its probability, the scores of all labels,
        and those of its own prompts (`evidence`).

        labels: names; or descriptions, {name: sentences that hold of it}, read as they stand.
        templates: what is read for a name, which stands where {} is.
        by: "cosine"; "likelihood", log p(text | image) per token; "pmi", log p(text | image) -
            log p(text); or "both" cosine / temperature + pmi (`tasks.zero_shot.Judge`).
        rule: of several sentences the "best" counts (the default of templates), their "mean" (of
            descriptions), or by cosine CLIP's "ensemble", the mean of their vectors.
        Raises ValueError for no labels, an empty one, and two that are one to the model.
        """
        if isinstance(labels, str) or not len(labels):
            raise ValueError(f"labels={labels!r}: give a list of one label or more")
        described = labels if isinstance(labels, Mapping) else None
        if described and templates != "{}":
            raise ValueError("descriptions are read as they stand: leave out templates")
        labels = texts_of(labels)[0]
        if described:
            prompts = [tuple(texts_of(described[label])[0]) for label in labels]
        else:
            prompts = fill_templates(labels, texts_of(templates)[0])
        check_labels(self.coca, self.tokenizer, labels, prompts, shared=bool(described))
        _tell(unread(self.coca, self.tokenizer, [text for group in prompts for text in group]))
        given, one = listed(images)
        fitting, told = self._fitting(fit)
        rule = rule or ("mean" if described else "best")
        classify = classifier(self.coca, self.tokenizer, labels, prompts, by, rule)
        batches = classified(self.coca, classify, given, by, None, fitting)
        found = [row for _, rows in batches for row in rows]
        _tell(told)
        return found[0] if one else found

    def search(
        self,
        query: str | Picture | Sequence[str | Picture],
        images: Pictures | None = None,
        *,
        k: int = 6,
        index: str | os.PathLike | None = None,
        rerank: int | None = None,
        fit: str | None = None,
    ) -> list[Found] | list[list[Found]]:
        """The k images that are nearest a query, best first: their places, themselves, cosines.

        query: a sentence (a str always is one), or an image (a Path, a PIL image, an array); a list
            of them gives a list of results.
        images: where to look: images; folders of files, each searched to the bottom; or the vectors
            that `embed_images` made of many.
        index: instead of images, the folder that `minicoca embed --index` made with this model.
            Found are then rows of it and names of files, which need not be there any more.
        rerank: of so many nearest images those first that a sentence belongs to, by the head of a
            model that matches (`log_odds` of Found), else those of which it is the likeliest
            caption, by log p(sentence | image) per token (`likelihood`). They have to be there.
        fit: "crop" if not given, or the index's own, which alone it may be.
        What in a folder cannot be used is left out, and told by a warning.
        """
        if k < 1:
            raise ValueError(f"k={k}: at least 1")
        if (images is None) == (index is None):
            raise ValueError("give images to search, or an index, and not both")
        fitting, told = self._fitting(fit or "crop")
        opened = None if index is None else open_index(self.coca, index, fit)
        if opened is not None:
            fitting = fitting._replace(fit=opened.fit)
        one = isinstance(query, str) or not isinstance(query, list | tuple)
        queries = [query] if one else list(query)
        if rerank is not None:
            if rerank < k or not all(isinstance(q, str) for q in queries):
                raise ValueError(f"rerank={rerank}: at least k={k}, and of sentences alone")
            if isinstance(images, np.ndarray) and images.ndim == 2 and images.dtype.kind == "f":
                raise ValueError("to rerank takes the images: give them, and not their vectors")
            demand_ranking(self.coca)
        many = rerank or k
        texts = [text_of(q) for q in queries if isinstance(q, str)]
        _tell(unread(self.coca, self.tokenizer, texts))
        vectors = [
            embed_texts(self.coca, self.tokenizer, [q])
            if isinstance(q, str)
            else self._vectors([q], fitting)
            for q in queries
        ]
        asked = np.concatenate([no_vectors(self.coca), *vectors])
        if opened is not None:
            found = search(opened, asked, many)
        else:
            parts, left_out = self._gallery(images, fitting)
            _tell(left_out)
            found = best(asked, parts, many)
        if rerank:
            ways = [
                (self.coca, self.tokenizer, q, own) for q, own in zip(queries, found, strict=True)
            ]
            found = [reranked(*way, None, fitting)[:k] for way in ways]
        _tell(told)
        return found[0] if one else found

    def score(self, images: Pictures, texts: str | Iterable[str], *, fit: str = "crop") -> Scores:
        """How well each text fits each image: `cosines` and `log_likelihoods`, [images, texts], and
        the texts' `tokens` and likelihoods `without_image`, without the axis of what was given
        alone.

        log p(text | image) = sum over t of log P(y_t | y_<t, image), which is minus the paper's
        Eq. 3, over the tokens y_t of the text and its end; `per_token` is that over their number,
        and `pmi` what the image adds to it: log p(text | image) - log p(text), the second as
        `tasks.scoring.without_image` estimates it.
        What the model was not trained for is None.
        """
        (given, one_image), (sentences, one_text) = listed(images), texts_of(texts)
        _tell(unread(self.coca, self.tokenizer, sentences))
        fitting, told = self._fitting(fit)
        batches = decoded(given, self.config.image_size, None, fitting)
        found = scores(self.coca, self.tokenizer, batches, sentences)
        _tell(told)
        text = 0 if one_text else slice(None)
        cut = (0 if one_image else slice(None), text)
        pairs = (None if x is None else x[cut] for x in found[:2])
        alone = None if found.without_image is None else found.without_image[text]
        return Scores(*pairs, found.tokens[text], alone)

    def match(
        self, images: Pictures, texts: str | Iterable[str], *, fit: str = "crop"
    ) -> np.ndarray | float:
        """The probability that image and text belong together, [images, texts], without the axis
        of what was given alone, by the head of a model that was trained to match. Raises ValueError
        for any other."""
        (given, one_image), (sentences, one_text) = listed(images), texts_of(texts)
        _tell(unread(self.coca, self.tokenizer, sentences))
        fitting, told = self._fitting(fit)
        batches = decoded(given, self.config.image_size, None, fitting)
        found = matches(self.coca, self.tokenizer, batches, sentences)
        _tell(told)
        return found[(0 if one_image else slice(None), 0 if one_text else slice(None))]

    def explain(
        self,
        images: Pictures,
        captions: str | Sequence[str] | None = None,
        *,
        layer: int | None = None,
        head: int | None = None,
        fit: str = "crop",
    ) -> Explanation | list[Explanation]:
        """Why each word of an image's caption stands there: its probability, its rivals, what it
        read of the image's patches, and what it would miss.

        captions: one for each image; None: those that the model writes. layer, head: whose
        attention, from 0; None: the mean of all. Raises ValueError for a layer or a head that there
        is not, for a caption that is empty to the model, and for one too many or too few.
        """
        given, one = listed(images)
        texts = None if captions is None else texts_of(captions)[0]
        if texts is not None and len(texts) != len(given):
            raise ValueError(f"{len(texts)} captions for {len(given)} images: give one for each")
        _tell(unread(self.coca, self.tokenizer, texts or []))
        fitting, told = self._fitting(fit)
        batches = decoded(given, self.config.image_size, None, fitting)
        pictures = [picture for _, some in batches for picture in some]
        if texts is None:
            texts = [text for p in pictures for text in caption(self.coca, self.tokenizer, p[None])]
        found = [
            explain(self.coca, self.tokenizer, picture, text, layer, head)
            for picture, text in zip(pictures, texts, strict=True)
        ]
        _tell(told)
        return found[0] if one else found

    def ask(
        self,
        images: Pictures,
        question: str | Sequence[str],
        *,
        by: str | None = None,
        best: int | None = None,
        fit: str = "crop",
    ) -> Answer | list[Answer] | list[list[Answer]]:
        """What the model answers, and how probable it finds that: an Answer (answer, probability)
        for each image, or, where `best` says how many, the best ones.

        question: one for all images, or one for each. Of a model of pairs, images are two for each
            question, one pair after the other.
        by: "head", the classifier over the answers of training, where there is one; "generation",
            words written after the question.
        Raises ValueError for a model that cannot answer so.
        """
        (given, one), (texts, same) = listed(images), texts_of(question)
        by = settled(self.coca, by, best)
        texts = for_each(self.config, len(given), texts)
        one = one or same and len(texts) == 1 < self.config.pictures
        _tell(unread(self.coca, self.tokenizer, dict.fromkeys(texts)))
        fitting, told = self._fitting(fit)
        batches = decoded(given, self.config.image_size, None, fitting)
        pictures = np.concatenate([some for _, some in batches])
        found = answer(self.coca, self.tokenizer, pictures, texts, by, best or 1)
        _tell(told)
        found = found if best else [own[0] for own in found]
        return found[0] if one else found

    def _fitting(self, fit):
        """How to make squares, and the list that is told of pictures decoded smaller."""
        if fit not in FITS:
            raise ValueError(f"fit={fit!r} is none of {', '.join(FITS)}")
        told = []
        return Fitting(fit, self.max_pixels, told.append), told

    def _vectors(self, given, fitting):
        parts = [vectors for _, vectors in embed(self.coca, given, None, fitting)]
        return np.concatenate(parts) if parts else no_vectors(self.coca)

    def _gallery(self, images, fitting):
        """What `best` looks at, and what is to be said of what was left out."""
        if isinstance(images, np.ndarray) and images.ndim == 2 and images.dtype.kind == "f":
            want = no_vectors(self.coca).shape[1]
            if images.shape[1] != want:
                raise ValueError(f"vectors of width {images.shape[1]}; this model's have {want}")
            return [(range(len(images)), images)], []
        given = listed(images)[0]
        if not any(isinstance(one, str | os.PathLike) and os.path.isdir(one) for one in given):
            return list(embed(self.coca, given, None, fitting)), []
        report, skipped = Report(), []
        parts = list(embed(self.coca, find_images(given, report), skipped, fitting))
        for error in skipped:
            report.add("could not be used", error)
        return parts, [str(report)] if report.named else []


def _tell(lines):
    """Each as a warning, at the line that called the function that calls this."""
    for line in lines:
        warnings.warn(line, stacklevel=3)
