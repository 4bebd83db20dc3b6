"""The explorer's page, in a real browser: its numbers are those of the dense definition, and a pointer changes it."""

import re

import numpy as np
import pytest
import torch
from helpers.browser import opened

from fma_kernels import CoreAttention, fma
from fma_tools.explorer import ImageInput, TextInput, page, record, write_page

CASES = {
    "image": dict(ndim=2, cell_size=2, rank=1, grid=(13, 10)),
    "image, rank 2, direct": dict(ndim=2, cell_size=2, rank=2, basis_kind="direct", num_levels=2, grid=(10, 13)),
    "image, linear": dict(ndim=2, cell_size=2, rank=1, attention="fma_linear", grid=(13, 10)),
    "image, near": dict(ndim=2, cell_size=2, attention="near", grid=(13, 10)),
    "image, full": dict(ndim=2, cell_size=2, attention="full", grid=(7, 9)),
    "text": dict(cell_size=4, rank=2, grid=(45,), group_bias=False, scale=0.3),
    "text, causal": dict(cell_size=4, rank=2, grid=(45,), causal=True),
    "text, causal, linear": dict(cell_size=4, rank=2, grid=(45,), causal=True, attention="fma_linear"),
}


def call(options: dict) -> tuple[CoreAttention, torch.Tensor, torch.Tensor]:
    """An attention of two heads with weights far from means, and queries and keys far from uniform attention."""
    torch.manual_seed(0)
    core = CoreAttention(2, 8, **{name: value for name, value in options.items() if name != "grid"})
    for parameter in core.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    query, key = torch.randn(2, 1, 2, int(np.prod(options["grid"])), 8) * 1.5
    return core, query, key


def dense_weights(core: CoreAttention, query: torch.Tensor, key: torch.Tensor, grid: tuple) -> torch.Tensor:
    """(H, N, N): the output of the reference for one-hot values, a summary's weight spread over its tokens."""
    length, channels = query.shape[-2:]
    ones = torch.eye(length, -(-length // channels) * channels, dtype=torch.float64).expand(1, 2, -1, -1)
    full = core.attention == "full"
    query, key = query.double(), key.double()
    parts = [
        fma(
            query, key, value, grid=grid, causal=core.causal, scale=core.scale,
            cell_size=max(grid) if full else core.cell_size, rank=1 if full else core.rank,
            key_basis=core.key_basis and core.key_basis.double(),
            query_basis=core.query_basis and core.query_basis.double(), group_bias=core.group_bias,
            near_only=core.attention in ("near", "full"), backend="reference",
        )
        for value in ones.split(channels, -1)  # the values have as many channels as the queries
    ]  # fmt: skip
    return torch.cat(parts, -1)[0, ..., :length].detach()


def shown(grid: tuple) -> ImageInput | TextInput:
    if len(grid) == 1:
        return TextInput([chr(97 + i % 26) for i in range(grid[0])])
    return ImageInput(np.random.default_rng(0).integers(0, 256, (4 * grid[0], 4 * grid[1], 3), np.uint8), [4])


def token_map(levels: list, grid: tuple) -> np.ndarray:
    """The weights that the page has over the tokens."""
    result = np.zeros(grid)
    for box in (box for level in levels for box in level):
        place = tuple(slice(*ends) for ends in zip(box["start"], box["end"], strict=True))
        result[place] += box["weight"] / box["count"]
    return result.reshape(-1)


@pytest.fixture
def make_page(tmp_path):
    def make(name: str):
        core, query, key = call(CASES[name])
        grid = CASES[name]["grid"]
        recordings = record({"layer": core}, lambda: core(query, key, key, grid))
        write_page(tmp_path / "new" / "page.html", recordings, shown(grid), "A <model> & its weights")
        return core, query, key, grid, tmp_path / "new" / "page.html"

    return make


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_those_of_the_reference(browser, make_page, name):
    check_numbers(browser, *make_page(name), tolerance=1e-4)


@pytest.mark.parametrize("name", ["image, linear", "text, causal"])
def test_large_pages_keep_three_digits(browser, make_page, monkeypatch, name):
    monkeypatch.setattr(page, "LARGEST_EXACT", 0)
    check_numbers(browser, *make_page(name), tolerance=1e-2)  # float16 keeps eleven bits of each factor


def check_numbers(browser, core, query, key, grid, path, tolerance):
    """The weights of the page are those of the reference, for tokens in a corner and inside, and for all heads."""
    expected = dense_weights(core, query, key, grid)
    with opened(browser, path) as shown_page:
        for token in (0, 31, query.shape[-2] - 1):
            for head in (0, 1, -1):
                levels = shown_page.evaluate(f"read(layer(), {token}, {head})")
                assert sum(box["weight"] for level in levels for box in level) == pytest.approx(1)
                weights = expected[:, token].mean(0) if head < 0 else expected[head, token]
                np.testing.assert_allclose(token_map(levels, grid), weights, rtol=tolerance, atol=tolerance / 500)


def test_levels_that_are_printed_add_up_the_reference(browser, make_page):
    core, query, key, grid, path = make_page("image")
    expected = dense_weights(core, query, key, grid).mean(0).detach()
    with opened(browser, path) as shown_page:
        shown_page.evaluate("state.query = 0; show()")
        shares = [float(share) for share in re.findall(r"([\d.]+) %", shown_page.inner_text("#levels"))]
        counts = [int(text) for text in shown_page.locator("#levels td:nth-child(2)").all_inner_texts()]
        names = shown_page.locator("#levels td:first-child").all_inner_texts()
    assert names == ["near field", "level 1", "level 2"] and counts[0] == 16
    near = expected[0].view(grid)[:4, :4].sum().item()
    assert shares[0] == pytest.approx(100 * near, abs=0.006) and sum(shares) == pytest.approx(100, abs=0.02)


@pytest.mark.parametrize(("name", "element"), [("image", "canvas"), ("text", "span >> nth=7")])
def test_a_pointer_and_keys_change_it(browser, make_page, name, element):
    *_, path = make_page(name)
    with opened(browser, path) as shown_page:

        def look() -> tuple[str, bytes]:
            return shown_page.inner_text("#query"), shown_page.locator("#view").screenshot()

        seen = [look()]
        assert "A <model> & its weights" in shown_page.inner_text("header")
        place = dict(position=dict(x=9, y=9)) if element == "canvas" else {}
        shown_page.hover(f"#view {element}", **place)
        seen.append(look())
        assert seen[1][0] == ("Query: row 0, column 0" if name == "image" else 'Query: token 7, "h"')
        shown_page.focus("#view")
        shown_page.keyboard.press("ArrowRight")
        seen.append(look())
        assert seen[2][0] == ("Query: row 0, column 1" if name == "image" else 'Query: token 8, "i"')
        assert len({text for text, _ in seen}) == len({picture for _, picture in seen}) == 3

        shown_page.click(f"#view {element}", **place)  # holds the query
        shown_page.mouse.move(200, 300)
        assert shown_page.inner_text("#query") == f"{seen[1][0]} (held)"
        shown_page.focus("#view")
        shown_page.keyboard.press("Escape")
        assert shown_page.inner_text("#query") == seen[1][0]

        # The controls, by the keyboard alone.
        everything = look()[1]
        shown_page.focus("#level")
        shown_page.keyboard.press("ArrowRight")
        assert shown_page.inner_text("#level-name") == "near field" and look()[1] != everything
        before = shown_page.inner_text("#levels")
        shown_page.select_option("#head", "1")
        assert shown_page.inner_text("#levels") != before


def test_layers_of_other_grids_keep_the_place(browser, tmp_path):
    def recording(name: str, side: int):
        core, query, key = call(dict(ndim=2, cell_size=2, grid=(side, side)))
        return record({name: core}, lambda: core(query, key, key, (side, side)))[0]

    recordings = [recording("fine", 16), recording("coarse", 8)]
    write_page(tmp_path / "page.html", recordings, ImageInput(np.zeros((64, 64, 3), np.uint8), [4, 8]), "")
    with opened(browser, tmp_path / "page.html", size=(390, 844), dark=True) as shown_page:
        assert shown_page.inner_text("#query") == "Query: row 8, column 8"
        shown_page.select_option("#layer", label="coarse")
        assert shown_page.inner_text("#query") == "Query: row 4, column 4"
        assert shown_page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_text_cannot_end_the_script(browser, tmp_path):
    core, query, key = call(dict(cell_size=4, grid=(3,)))
    recordings = record({"layer": core}, lambda: core(query, key, key))
    write_page(tmp_path / "page.html", recordings, TextInput(["</script>", "<b>", "{{data}}"]), "")
    with opened(browser, tmp_path / "page.html") as shown_page:
        assert shown_page.inner_text("#view") == "</script><b>{{data}}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(ndim=2, cell_size=2, attention="none", grid=(4, 4)), "attention='none'"),
        (dict(ndim=3, cell_size=2, grid=(2, 2, 2)), r"grid=\(2, 2, 2\)"),
    ],
)
def test_attentions_that_it_does_not_show(options, message):
    core, query, key = call(options)
    with pytest.raises(ValueError, match=message):
        record({"layer": core}, lambda: core(query, key, key, options["grid"]))


def test_an_attention_that_is_not_called():
    with pytest.raises(ValueError, match="attentions='layer'"):
        record({"layer": CoreAttention(1, 4, cell_size=2)}, lambda: None)


def test_a_page_that_is_too_large_is_not_written(tmp_path, monkeypatch):
    core, query, key = call(dict(cell_size=4, grid=(45,)))
    recordings = record({"layer": core}, lambda: core(query, key, key))
    monkeypatch.setattr(page, "LARGEST", 1000)
    with pytest.raises(ValueError, match="size of the page in MiB"):
        write_page(tmp_path / "page.html", recordings, shown((45,)), "")
    assert not list(tmp_path.iterdir())
