"""What the tests measure with: complex-step derivatives, true shape suffixes, planted bugs."""

import contextlib
import inspect
import re
import sys

import numpy as np

from minicoca.params import flatten, tree_map

STEP = 1e-30  # of the complex step; there is no cancellation, so it can be this small


def normal_like(rng, tree):
    """A tree of standard normals of the same shapes."""
    return tree_map(lambda a: rng.standard_normal(np.shape(a)), tree)


def dot(tree, other):
    """The inner product of two trees; their names and shapes must be the same."""
    a, b = flatten(tree), flatten(other)
    assert a.keys() == b.keys(), f"gradients for {sorted(a.keys() ^ b.keys())} missing or too many"
    for name in a:
        assert np.shape(a[name]) == np.shape(b[name]), f"{name}: {a[name].shape} {b[name].shape}"
    return sum(float(np.sum(a[name] * b[name])) for name in a)


def complex_step_error(forward, backward, arguments, rng):
    """Relative gap of <J v, dy> (complex step) and <v, J' dy> (the hand-written backward).

    `arguments` is a dict of trees; forward(**arguments) -> (y, cache), y a tuple of arrays;
    backward(dy, cache) -> a dict of gradients like `arguments`. dy is random: layer norm's input
    gradient under dy = 1 is zero, and so is that of a backward that forgets it.
    """
    v = normal_like(rng, arguments)
    perturbed = tree_map(lambda a, b: a + 1j * STEP * b, arguments, v)
    moved, _ = forward(**perturbed)
    y, cache = forward(**arguments)
    dy = tuple(rng.standard_normal(np.shape(part)) for part in y)
    left = sum(float(np.sum(m.imag / STEP * d)) for m, d in zip(moved, dy, strict=True))
    gradients = backward(dy, cache)
    right = dot(v, gradients)
    # Scale: the size of the terms that are summed, so that a chance cancellation is no failure.
    ours = flatten(gradients)
    scale = sum(float(np.sum(np.abs(a * ours[name]))) for name, a in flatten(v).items())
    return abs(left - right) / max(scale, 1e-300)


SUFFIXED = re.compile(r"_([A-Z0-9]+)$")


class SuffixTracer:
    """Checks, when a function of the reference returns, that its array names tell the truth.

    One capital is one axis, one letter is one size within a call, a digit is that size.
    """

    def __init__(self, folder):
        self.folder, self.complaints, self.names = str(folder), [], set()

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self._enter_call)
        return self

    def __exit__(self, *_):
        sys.settrace(self.before)

    def _enter_call(self, frame, event, argument):
        if frame.f_code.co_filename.startswith(self.folder):
            frame.f_trace_lines = False
            return self._in_call
        return None

    def _in_call(self, frame, event, argument):
        if event == "return":
            self._check(frame)
        return self._in_call

    def _check(self, frame):
        sizes = {}
        for name, value in frame.f_locals.items():
            match = SUFFIXED.search(name)
            if not match or not hasattr(value, "shape"):
                continue
            axes = re.findall(r"[A-Z]|\d+", match[1])
            self.names.add(name)
            where = f"{frame.f_code.co_filename}:{frame.f_code.co_name}: {name}"
            if len(axes) != len(value.shape):
                self.complaints.append(f"{where} names {len(axes)} axes, has {value.shape}")
                continue
            for axis, size in zip(axes, value.shape, strict=True):
                want = int(axis) if axis.isdigit() else sizes.setdefault(axis, size)
                if size != want:
                    self.complaints.append(f"{where} has {axis}={size}, but {want} elsewhere")


def name_of(row):
    """What a test of a planted bug is called: (module, old, new, check)."""
    module, old, new, check = row
    return f"{module.__name__.split('.', 1)[1]}: {new[:40]} -> {check.__name__}"


@contextlib.contextmanager
def planted(module, old, new, *more):
    """Within the block, `module` behaves as if its source said `new` where it says `old` (once);
    `more`: further olds and news.

    The code of the changed functions is swapped in place, so whoever imported them sees the bug.
    """
    source, edits = inspect.getsource(module), (old, new, *more)
    for old, new in zip(edits[::2], edits[1::2], strict=True):
        times = source.count(old)
        assert times == 1, f"{module.__name__}: {old!r} stands {times} times"
        source = source.replace(old, new)
    namespace = dict(vars(module))
    exec(compile(source, module.__file__, "exec"), namespace)
    swapped = []
    try:
        for holder, changed in _pairs_of(vars(module), namespace, module.__name__):
            if holder.__code__ != changed.__code__:
                swapped.append((holder, holder.__code__))
                holder.__code__ = changed.__code__
        assert swapped, f"{module.__name__}: {new!r} changes no function"
        yield
    finally:
        for function, code in swapped:
            function.__code__ = code


def _pairs_of(original, changed, module_name):
    """(function, its changed self) for the functions and methods that the module defines."""
    for name, value in list(original.items()):
        if getattr(value, "__module__", None) != module_name:
            continue
        value, other = inspect.unwrap(value), inspect.unwrap(changed[name])
        if inspect.isfunction(value):
            yield value, other
        elif inspect.isclass(value):
            for key, method in vars(value).items():
                if isinstance(method, staticmethod):
                    yield method.__func__, vars(other)[key].__func__
                elif inspect.isfunction(method):  # torch wraps an optimizer's step
                    yield inspect.unwrap(method), inspect.unwrap(vars(other)[key])
