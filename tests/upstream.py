"""The numbers of the upstream networks (tests/golden), for the tests that compare with them."""

import importlib.util
import json
import os
import re
from functools import cache
from pathlib import Path

import pytest
from safetensors import safe_open
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

GOLDEN = Path(__file__).with_name("golden")
LARGER = Path(os.environ.get("RECONX_GOLDEN", GOLDEN.parents[2] / "shared" / "golden"))  # what would make a clone too big
NETWORK, TRAJECTORY = 2e-5, 2e-4  # tolerances, relative to the largest absolute value
WORD = r"[a-z]+|[0-9]|[^\s\w]+"


def files(*patterns):
    """The files of both folders that match; one that is in both is read from the repository's."""
    found = {path.relative_to(folder): path for folder in (LARGER, GOLDEN) for name in patterns for path in folder.glob(name)}
    return [found[name] for name in sorted(found)]


def missing(pattern):
    return f"no {pattern} in {GOLDEN} or {LARGER} (set RECONX_GOLDEN)"


def file(pattern):
    """The first file that matches; without one the test is skipped."""
    found = files(pattern)
    if not found:
        pytest.skip(missing(pattern))
    return found[0]


def fixtures(*patterns):
    """The fixtures of a kind, to parametrise a test with; full-size ones are slow."""
    found = files(*patterns)
    if not found:
        return [pytest.param(None, marks=pytest.mark.skip(reason=missing(" or ".join(patterns))))]
    return [pytest.param(path, marks=[pytest.mark.slow] if "real" in path.name else [], id=path.stem) for path in found]


def cases(pattern):
    """(fixture, case) for every case of every fixture of a kind."""
    found = files(pattern)
    if not found:
        return [pytest.param(None, None, marks=pytest.mark.skip(reason=missing(pattern)))]
    return [pytest.param(path, case, id=f"{path.stem}-{case}") for path in found for case in load(path)[1]["cases"]]


@cache
def load(path):
    """Tensors by name, and the metadata with what is JSON in it parsed."""
    with safe_open(path, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
        metadata = {name: json.loads(text) if text[:1] in "{[" else text for name, text in opened.metadata().items()}
    return tensors, metadata


@cache
def recipe():
    """The module that makes weights and noises from their names."""
    spec = importlib.util.spec_from_file_location("recipe", GOLDEN / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stored(tensors, prefix=""):
    """The weights that a fixture holds itself, by their names after ``prefix``."""
    start = f"sd.{prefix}"
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def fill(module, sources, prefix, known):
    """Load a network with ``known`` weights and the recipe's for all others; ``sources`` maps its names to upstream's."""
    state = module.state_dict()
    for name, (key, part, parts) in sources(state).items():
        shape = [state[name].shape[0] * parts, *state[name].shape[1:]] if state[name].ndim else []
        if re.match(r"init_attn\.0\.proj_(in|out)\.weight", key):
            shape = [*shape, 1]  # upstream's is a convolution
        value = known[key] if key in known else recipe().recipe_tensor(prefix + key, shape)
        state[name] = value.chunk(parts)[part].reshape(state[name].shape)
    module.load_state_dict(state, assign=True)
    return module.eval()


def tokenizer():
    """A tokenizer that knows the words of the CLIP fixtures' prompts by open_clip's ids; any other word is an error."""
    ends = {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    vocabulary = ends | json.loads((GOLDEN / "clip_words.json").read_text())
    words = Tokenizer(models.WordLevel(vocabulary))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "removed", invert=True)
    words.post_processor = processors.TemplateProcessing("<|startoftext|> $A <|endoftext|>", special_tokens=list(ends.items()))
    return PreTrainedTokenizerFast(tokenizer_object=words)


def assert_close(ours, reference, tolerance=NETWORK):
    assert ours.shape == reference.shape
    worst = (ours - reference).abs().max() / reference.abs().max()
    assert worst <= tolerance, f"off by {worst:.2g} of the largest value"
