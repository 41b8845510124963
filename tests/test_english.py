"""Docstrings are sentences, and use the words of the field.

A function's begins with a verb in the third person, that of a module, class or property with the
noun that it is.
"""

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT

# Words with no meaning in the field, each with what is said instead
OWN_WORDS = {
    "desk": "small scale", "price": "loss gap", "boundary_id": "document separator",
    "parked": "snapshot", "mirror": "tracker", "mirrors": "trackers", "claim": "ownership",
    "claims": "ownership", "peaks": "peak FLOP/s",
}  # fmt: skip
# End in s like a verb in the third person, but are plural nouns, pronouns and the like
NO_VERBS = set(
    "Arrays Axes Batches Bytes Continuations Curves Fields Files Flags Has Hours Ids Indices Is "
    "Its Lanes Layers Lines Logits Losses Messages Modules Names Numbers Others Parameters "
    "Parts Pieces Points Positions Rates Rows Seconds Shapes Shardings Sizes Slopes Sources Sums "
    "Tensors Texts This Tokens Values Weights Widths Words".split()
)
# Begin a fragment or a riddle where the noun should stand
NO_NOUNS = set(
    "Also And As At Because Before Begins But By For From Has How If In Into Is It Its Of On Or "
    "Says So Takes Tells That These They This Those Through Till To Under Unless Until What When "
    "Where Which While Who Whose Why With Without".split()
)
MODULES = sorted((ROOT / "mujax").rglob("*.py"))
OTHERS = [
    file
    for folder in ("configs", "docs", "experiments")
    for file in sorted((ROOT / folder).rglob("*.py"))
]


def documented(tree: ast.Module) -> list[tuple[str, bool, str]]:
    """Returns (name, whether it is a function, docstring) of all that have a docstring."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node)
            marks = [ast.unparse(d) for d in getattr(node, "decorator_list", ())]
            is_property = any("property" in mark for mark in marks)
            name = "the module" if isinstance(node, ast.Module) else node.name
            if text is not None:
                found.append((name, isinstance(node, ast.FunctionDef) and not is_property, text))
    return found


def wrong_beginnings(source: str) -> list[str]:
    """Returns 'name: first words' of each docstring that does not begin as it should."""
    wrong = []
    for name, is_function, text in documented(ast.parse(source)):
        first = re.split(r"[\s,.:;]", text, maxsplit=1)[0]
        is_verb = re.fullmatch(r"[A-Z][a-z]+s", first) and first not in NO_VERBS
        if not (is_verb if is_function else first not in NO_NOUNS):
            wrong.append(f"{name}: {text[:50]}")
    return wrong


def words_of(source: str) -> set[str]:
    """Returns the words of all docstrings and identifiers, in lower case."""
    tree = ast.parse(source)
    texts = [text for _, _, text in documented(tree)]
    identifiers = [
        value
        for node in ast.walk(tree)
        for field in ("id", "attr", "arg", "name", "asname")
        if isinstance(value := getattr(node, field, None), str)
    ]
    pieces = [piece for name in identifiers for piece in re.findall(r"[A-Z]?[a-z0-9]+", name)]
    words = [*identifiers, *pieces, *re.findall(r"\w+", " ".join(texts))]
    return {word.lower() for word in words}


@pytest.mark.parametrize("file", [*MODULES, *OTHERS], ids=lambda file: str(file.relative_to(ROOT)))
def test_docstrings_are_sentences(file: Path):
    assert wrong_beginnings(file.read_text()) == []


def test_words_of_the_field():
    found = {}
    for file in MODULES:
        # a PersistentVolumeClaim is Kubernetes' own word
        of_kubernetes = {"claim"} if file.name in ("jobset.py", "launch.py") else set()
        # the name that recorded configs have had
        earlier = {"boundary_id"} if file.name == "ids.py" else set()
        if own := words_of(file.read_text()) & (OWN_WORDS.keys() - of_kubernetes - earlier):
            found[file.name] = own
    assert found == {}


@pytest.mark.parametrize(
    ("source", "is_wrong"),
    [
        ('def f():\n    """Returns the rows by id."""', False),
        ('def f():\n    """Rows by id; the first of each."""', True),
        ('def f():\n    """Of what every device has a copy of."""', True),
        ('def f():\n    """Those of one run\'s state."""', True),
        ('def f():\n    """ids -> text, without what is no text."""', True),
        ('class A:\n    """Rows by id."""', False),
        ('class A:\n    """Of one run."""', True),
        ('class A:\n    @property\n    def b(self):\n        """The rows."""', False),
        ('class A:\n    @property\n    def b(self):\n        """By id."""', True),
        ('"""Whose a workdir is."""', True),
    ],
)
def test_a_fragment_is_seen(source, is_wrong):
    assert bool(wrong_beginnings(source)) == is_wrong


def test_an_own_word_is_seen():
    words = words_of('class PriceOf:\n    """Parked."""\n    boundary_id = f(peaks=claim.x)')
    assert {"price", "parked", "boundary_id", "peaks", "claim"} <= words
