"""Recipes: presets are the published tables, and every key is known and used."""

import pytest

from longlens.data.recipe import Mixture, MixtureSource, read_mixture
from longlens.errors import UserError
from longlens.settings.recipe import presets

SHORTMIX = {"fineweb": 25, "fineweb-edu": 25, "wikipedia": 10, "tulu-v2": 10, "stackexchange": 10, "arxiv": 10}
SHORTMIX |= {"openwebmath": 10}


def weights(preset):
    return {name: source.weight for name, source in read_mixture(preset, tokens=10**9).sources.items()}


@pytest.mark.parametrize("preset", presets("mixtures"))
def test_presets_sum_to_100_percent(preset):
    assert sum(weights(preset).values()) == 100


def test_the_presets_are_these():
    long, sft = [f"long-{share}" for share in (0, 100, 20, 40, 80)], [f"sft-{share}" for share in (0, 1, 10, 3, 50)]
    lecture = ["books", "books-repos", "commoncrawl", "dclm", "fineweb-edu", *long, "repos", *sft, "slimpajama"]
    others = ["pg19", "pile-arxiv", "prolong-512k", "prolong-64k", "shortmix"]
    assert presets("mixtures") == [*(f"lecture-{name}" for name in lecture), *others]


def test_shares_of_the_presets():
    assert weights("shortmix") == SHORTMIX
    short = {name: share * 0.4 for name, share in SHORTMIX.items()}
    assert weights("lecture-books-repos") == {"code": 30, "books": 30} | short
    assert weights("lecture-books") == {"books": 60} | short
    assert weights("lecture-slimpajama") == {"code": 30, "books": 30, "slimpajama": 40}
    for share in (0, 20, 40, 80, 100):
        long = {"code": share / 2, "books": share / 2}
        every = long | {name: value * (100 - share) / 100 for name, value in SHORTMIX.items()}
        assert weights(f"lecture-long-{share}") == {name: value for name, value in every.items() if value}
        # A path of a source that is left out is no error, so that one set of paths serves the sweep.
        assert read_mixture(f"lecture-long-{share}", sources={"books": "b", "arxiv": "a"}).length == 65536
    for share in (0, 1, 3, 10, 50):
        expected = {"ultrachat": 100 - share} | ({"synthetic": share} if share else {})
        assert weights(f"lecture-sft-{share}") == expected
        found = read_mixture(f"lecture-sft-{share}", sources={"ultrachat": "u", "synthetic": "s"})
        assert (found.packing, found.bos, found.eos, found.tokens) == ("best-fit", False, False, 250 * 64 * 65536)
        assert all(s.tokenized and s.repeat and s.too_long == "drop" for s in found.sources.values())
    stage1, stage2 = weights("prolong-64k"), weights("prolong-512k")
    for stage in (stage1, stage2):
        assert sum(share for name, share in stage.items() if name.startswith(("code", "books"))) == 60
    assert (stage2["code-512k"], stage2["code-64k"], stage2["books-512k"], stage2["books-64k"]) == (15, 15, 5, 25)
    assert {n: s for n, s in stage1.items() if n not in ("code", "books")}.items() <= stage2.items()


def test_length_stands_for_the_length_of_a_row():
    assert read_mixture("prolong-64k").sources["books"].min_tokens == 65536
    assert read_mixture("prolong-64k", length=128).sources["books"].min_tokens == 128
    assert read_mixture("pg19").tokens == 200 * 64 * 32768


def test_a_path_given_for_a_source_takes_subset_and_split_away():
    found = read_mixture("prolong-64k", sources={"fineweb-2023-50": "texts"}).sources["fineweb-2023-50"]
    assert (found.path, found.subset) == ("texts", None)
    found = read_mixture("prolong-64k", sources={"fineweb-2023-50": "hf:mine"}).sources["fineweb-2023-50"]
    assert (found.path, found.subset) == ("hf:mine", "CC-MAIN-2023-50")


GOOD = "length: 64\ntokens: 1e3\nsources:\n  a: {weight: 100, path: a}\n"


def test_numbers_as_people_write_them(tmp_path):
    (tmp_path / "r.yaml").write_text(GOOD)
    assert read_mixture(tmp_path / "r.yaml") == Mixture(
        sources={"a": MixtureSource(weight=100, path="a")}, length=64, tokens=1000
    )


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            GOOD + "seeed: 1\n",
            "r.yaml: unknown key 'seeed' (nearest: 'seed'); known are sources, length, tokens, seed, packing, bos",
        ),
        (
            GOOD.replace("path", "pth"),
            "r.yaml: sources.a: unknown key 'pth' (nearest: 'path'); known are weight, path, subset, split, text_",
        ),
        (GOOD + "tokens: 9\n", "r.yaml is not valid YAML: the key 'tokens' occurs twice"),
        (GOOD.replace("length: 64\n", ""), "r.yaml says no length: write it there, or pass `length`"),
        (GOOD.replace("tokens: 1e3\n", ""), "r.yaml says no tokens: write it there, or pass `tokens`"),
        (GOOD.replace("1e3", "many"), "r.yaml: tokens is 'many'; expected an integer, such as 65536 or 1e9"),
        (GOOD.replace("length: 64", "length: 64.5"), "r.yaml: length is 64.5; expected an integer, such as 65536"),
        (GOOD + "'`seed`': 1\n", "r.yaml: unknown key '`seed`' (nearest: 'seed'); known are sources, length"),
        (GOOD.replace("1e3", "10.5"), "r.yaml: tokens is 10.5; expected an integer, such as 65536 or 1e9"),
        (GOOD.replace("1e3", "63"), "r.yaml: tokens is 63, less than one row of 64: use more, such as 1e9"),
        (GOOD.replace("100", "90"), "r.yaml: the weights of the sources sum to 90; they are percent: expected 100"),
        (
            GOOD.replace("100", "-1"),
            "r.yaml: sources.a.weight is -1; expected percent of the tokens, above 0 and at most 100",
        ),
        (
            GOOD.replace("100", "half"),
            "r.yaml: sources.a.weight is 'half'; expected percent of the tokens, above 0 and at most 100",
        ),
        (
            GOOD.replace("100", "true"),
            "r.yaml: sources.a.weight is True; expected percent of the tokens, above 0 and at most 100",
        ),
        (GOOD.replace("weight: 100, ", ""), "r.yaml: sources.a.weight is missing: set it"),
        (
            GOOD.replace("path: a", "path: a, split: x"),
            "r.yaml: sources.a: split is for hf: datasets, and 'a' is not one: leave it out",
        ),
        (
            GOOD.replace("path: a", "path: a, order_by: x"),
            "r.yaml: sources.a: order_by is the order in a group: set group_by too, or leave it out",
        ),
        (
            GOOD.replace("path: a", "path: a, tokenized: true, text_field: x"),
            "r.yaml: sources.a: group_by and text_field are for texts, and tokenized is true: leave them out",
        ),
        (
            GOOD.replace("path: a", "path: a, min_tokens: 9, max_tokens: 3"),
            "r.yaml: sources.a: min_tokens is 9 and max_tokens 3: no document fits",
        ),
        (
            GOOD.replace("path: a", "path: a, min_tokens: long"),
            "r.yaml: sources.a.min_tokens is 'long'; expected an integer, such as 65536 or 1e9",
        ),
        (GOOD.replace("path: a", "path: a, piece_length: 65"), "r.yaml: piece_length of a is 65, longer than a row of"),
        (
            GOOD.replace("path: a", "path: a, too_long: x"),
            "r.yaml: sources.a.too_long is 'x'; expected split, cut or drop",
        ),
        (GOOD.replace("path: a", "path: a, repeat: 3"), "r.yaml: sources.a.repeat is 3; expected true or false"),
        (
            GOOD.replace("  a:", "  a/b:"),
            "r.yaml: a source is called 'a/b', which cannot name a folder: choose a plain",
        ),
        (GOOD + "packing: tight\n", "r.yaml: packing is 'tight'; expected fill or best-fit"),
        (GOOD + "seed: x\n", "r.yaml: seed is 'x'; expected an integer, such as 65536 or 1e9"),
        ("length: 64\ntokens: 99\nsources: {}\n", "r.yaml: sources is {}; expected at least one"),
        ("length: 64\ntokens: 99\nsources: [a]\n", "r.yaml: sources is ['a']; expected keys with values"),
        ("length: 64\ntokens: 99\nsources: {a: 9}\n", "r.yaml: sources.a is 9; expected keys such as weight"),
        ("- a\n", "r.yaml contains a list; expected keys such as length and sources"),
        ("a: [\n", "r.yaml is not valid YAML: while parsing"),
    ],
)
def test_what_is_wrong_with_a_recipe(recipe, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(recipe)
    with pytest.raises(UserError) as refused:
        read_mixture("r.yaml")
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_no_such_recipe_or_source():
    with pytest.raises(UserError, match=r"no recipe 'prolong': pass a YAML file, or one of lecture-books, "):
        read_mixture("prolong")
    with pytest.raises(UserError, match=r"`sources`: prolong-64k has no source 'book' \(nearest: 'books'\)"):
        read_mixture("prolong-64k", sources={"book": "x"})
