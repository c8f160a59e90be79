"""How a run begins: its data, its tokenizer, its first weights, and a Trainer of them."""

from dataclasses import fields, replace

from .. import data, memory, params
from ..config import OWN_VOCABULARY, Config
from ..data.questions import classes
from ..relatives import specs_of
from ..tasks.questions import left_out
from ..tokenizer import Tokenizer
from ..tuning import grow, move_positions, named
from ..words import clean
from .checkpoint import TOKENIZER, all_captions, read_config, read_weights, trainer_of


def make_trainer(tree, config, ranks=None):
    """The Trainer of the config's backend. Raises ValueError for what several processes cannot
    do."""
    if ranks is None or ranks.world == 1:
        return trainer_of(config).Trainer(tree, config)
    if config.backend == "numpy":
        raise ValueError("--backend numpy trains in one process: leave torchrun out")
    for name, own in (("task", "captions"), ("objective", "coca")):
        if (other := getattr(config, name)) != own:
            raise ValueError(f"--{name} {other} trains in one process: leave torchrun out")
    if config.batch_size < ranks.world * config.accumulate:
        raise ValueError(
            f"batch_size={config.batch_size} is less than a pair for each of {ranks.world} "
            f"processes and {config.accumulate} micro-batches: fewer of them, or a larger batch"
        )
    return trainer_of(config).Trainer(tree, config, ranks)


def check_memory(config, ranks=None, known=True):
    """Raise ValueError for a run that takes more than there is: of several processes one, with its
    share of a batch. What FSDP2 parts is not counted. known: as in `memory.check`."""
    world = ranks.world if ranks else 1
    own = replace(config, batch_size=-(-config.batch_size // world))
    memory.check(own, training=world == 1 or config.parallel == "ddp", known=known)


def start(config, folder, say, tokenizer=None, ranks=None):
    """Make the tokenizer, unless there is one, and the first weights: (trainer, tokenizer, dataset,
    config). ranks: the processes of the run; each makes the same, and the first one writes."""
    check_memory(config, ranks, known=False)
    weights = None
    check_init(config)
    if config.init:
        earlier = read_config(config.init)
        weights, tokenizer = first_weights(config, say)
        if not earlier.reads and config.data != earlier.data:  # its words, if any, are not these
            tokenizer = None
            if config.vocabulary == earlier.vocabulary:
                config = replace(config, vocabulary=OWN_VOCABULARY)
    dataset = data.load(config)
    texts = all_captions(dataset)
    if weights and config.task != "captions":
        tokenizer = with_words(tokenizer, texts, say)
    given = tokenizer
    tokenizer = tokenizer or Tokenizer.train(
        texts, config.vocabulary, config.tokenizer, config.fold, say=say
    )
    config = replace(config, answers=answers_of(config, dataset, say))
    if weights and (config.answers, config.pictures) != (earlier.answers, earlier.pictures):
        weights.pop("head", None)
    if config.fold and not tokenizer.folds:
        raise ValueError("--fold: the run that --init names keeps captions as written")
    if tokenizer.folds and (folded := sum(tokenizer.normalise(t) != clean(t) for t in texts)):
        by = "--fold" if config.fold else "by the tokenizer of the run that --init names"
        say(f"{folded:,} captions are folded ({by}): case and letters are not kept as written")
    if unknown := tokenizer.unknown_share(texts):
        share = f"{unknown:.1%}" if unknown > 0.001 else "under 0.1%"
        advice = "the run that --init names had others" if given else "more fit in --vocabulary"
        say(f"{share} of the words are unknown to the tokenizer; {advice}")
    rows = len(getattr(dataset.train, "looks", dataset.train))
    if config.batch_size > rows:
        say(f"batches of {rows}, all the pairs there are")
    config = replace(
        config,
        batch_size=min(config.batch_size, rows),
        warmup=shorter_warmup(config, say),
        vocabulary=tokenizer.vocab_size,
        fold=tokenizer.folds,
    )
    mean, std = (tuple(map(float, x)) for x in (dataset.mean, dataset.std))
    if weights:  # pixels stay what they know
        mean, std = earlier.pixel_mean, earlier.pixel_std
    config = replace(config, pixel_mean=mean, pixel_std=std)
    check_memory(config, ranks)
    if weights and (config.init_parts or config.objective != earlier.objective):
        weights = shared(weights, config, say)
    elif weights and params.shapes(weights) != params.shapes(specs_of(config)):
        weights = grow(weights, config)
    weights = weights or params.initialise(config, config.seed, tree=specs_of(config))
    if config.backend != "numpy":
        from ..engine.precision import settled

        config = settled(config, weights, say)
        if ranks:
            config = replace(config, precision=ranks.text(config.precision))
    trainer = make_trainer(weights, config, ranks)
    if ranks is None or ranks.first:
        tokenizer.save(folder / TOKENIZER)
    return trainer, tokenizer, dataset, config


def check_init(config):
    """Raise ValueError for what is said of --init without it."""
    if config.init_parts and not config.init:
        raise ValueError("init_parts is of a run's weights: give --init too")
    if config.init_decay != 1 and not config.init_parts:
        raise ValueError(
            f"init_decay={config.init_decay:g} is of what --init-parts names: give it too, "
            "--init-parts image for instance"
        )


def with_words(tokenizer, texts, say):
    """A Tokenizer that knows the words of the texts too, if it is one of words."""
    if not hasattr(tokenizer, "with_words"):
        return tokenizer
    more = tokenizer.with_words(texts)
    if added := more.vocab_size - tokenizer.vocab_size:
        say(f"{added:,} words are added to the {tokenizer.vocab_size:,} tokens of the earlier run")
    return more


def answers_of(config, dataset, say):
    """The classes of the head, where a task has one."""
    if config.task == "captions" or not config.answer_weight:
        return ()
    found = classes(dataset.train)
    if lost := left_out(dataset.train, found):
        say(f"{lost:,} questions have no answer among the {len(found):,} most frequent ones")
    return found


def first_weights(config, say):
    """(weights, Tokenizer) of the run that --init names, for the config's image size."""
    earlier = read_config(config.init)
    sides = earlier.image_size // earlier.patch_size, config.image_size // config.patch_size
    if config.patch_size != earlier.patch_size:
        raise ValueError(
            f"patch_size={config.patch_size}, but {config.init} was trained with patches of "
            f"{earlier.patch_size} pixels, and its weights fit no other; leave --patch-size out"
        )
    model = [field.name for field in fields(Config) if field.metadata["group"] == "model"]
    model = () if config.init_parts else model  # what begins anew may be of any size
    before = replace(earlier, **{name: getattr(config, name) for name in model})
    before = replace(before, image_size=earlier.image_size)
    if not earlier.reads:  # what it never used may be of any size
        before = replace(before, vocabulary=earlier.vocabulary)
    weights, tokenizer = read_weights(config.init, before, say)
    if sides[0] != sides[1]:
        say("positions of {0} x {0} patches are interpolated to {1} x {1}".format(*sides))
    return move_positions(weights, replace(before, image_size=config.image_size)), tokenizer


def shared(weights, config, say):
    """First weights of which some are the run's that --init names: those that --init-parts names,
    or, of another objective, those of the same name and shape."""
    fresh = params.flatten(params.initialise(config, config.seed, tree=specs_of(config)))
    known = params.flatten(weights)
    taken = {n: x for n, x in known.items() if n in fresh and x.shape == fresh[n].shape}
    if config.init_parts:
        asked = [*named("init_parts", specs_of(config), config)]
        if lacking := [name for name in asked if name not in taken]:
            raise ValueError(
                f"init_parts: {config.init} has no {lacking[0]} of shape {fresh[lacking[0]].shape}"
            )
        taken = {name: taken[name] for name in asked}
    if not taken:
        raise ValueError(f"{config.init} has no weights that objective={config.objective} has too")
    count, whole = (sum(x.size for x in own.values()) for own in (taken, fresh))
    parts = ", ".join(sorted({name.split(".")[0] for name in taken}))
    say(f"{count:,} of {whole:,} parameters are of {config.init} ({parts}); the others begin anew")
    return params.unflatten(fresh | taken)


def shorter_warmup(config, say):
    """The config's warm-up, or one that its steps have room for."""
    if config.warmup < config.steps:
        return config.warmup
    say(f"warm-up of {config.steps // 10} steps: {config.warmup} are all there are, or more")
    return config.steps // 10
