import pytest
import torch
from PIL import Image
from test_editing import LAYERS, WIDTH, some_directions, tiny_model

from editing import Direction, DirectionSet, Editor
from editing.mixing import Mix
from errors import DirectionError


def test_amounts_are_the_part_of_the_way_to_the_second_code():
    first, second = torch.zeros(1, 10, 4), torch.ones(1, 10, 4)
    mixed = Mix(morph=0.5, coarse=0.5, fine=1.0).blend(first, second)[0, :, 0]
    # 4² and 8² are layers 0 to 2, 16² and 32² layers 3 to 6: half of the way, and half or all of what is left.
    assert mixed.tolist() == [0.75] * 3 + [0.5] * 4 + [1.0] * 3


def test_the_ends_are_exactly_the_photos():
    first, second = torch.randn(2, 18, 512).split(1)
    assert torch.equal(Mix().blend(first, second), first)
    assert torch.equal(Mix(morph=1.0).blend(first, second), second)
    assert torch.equal(Mix(coarse=1.0, middle=1.0, fine=1.0).blend(first, second), second)


@pytest.mark.parametrize("amount", [-0.1, 1.1, float("nan")])
def test_other_amounts_are_refused(amount):
    with pytest.raises(DirectionError, match="amount of coarse cannot be"):
        Mix(coarse=amount)


def test_two_models_do_not_mix():
    with pytest.raises(DirectionError, match="open the second one again"):
        Mix(morph=0.5).blend(torch.zeros(1, 18, 512), torch.zeros(1, 10, 128))


def test_fidelity_is_of_both_photos_and_edits_come_on_top():
    editor = Editor(tiny_model(template=None), some_directions())
    first, second = (editor.open(Image.new("RGB", (64, 64), colour)) for colour in ("red", "navy"))
    for strengths in ({}, {"smile": 1.0}):
        mixed = editor.render(first, strengths, 0.5, None, second, Mix(morph=1.0))
        assert mixed.tobytes() == editor.render(second, strengths, 0.5).tobytes()
        assert mixed.tobytes() != editor.render(first, strengths, 0.5).tobytes()


def test_kept_directions_are_kept_and_the_others_lose_only_what_lies_along_them():
    torch.manual_seed(0)
    vectors = {name: torch.randn(LAYERS, WIDTH) for name in ("age", "glasses", "gender")}
    vectors["glasses"][4:] = 0  # a layer on which nothing is to be kept stays free
    vectors["age"][1] = 0
    directions = DirectionSet({name: Direction(name, "", -1, 1, each) for name, each in vectors.items()})
    kept = directions.keeping(["glasses"])
    assert torch.equal(kept["glasses"].vectors, vectors["glasses"])
    age = kept["age"].vectors
    assert (age * vectors["glasses"]).sum(1).abs().max() < 1e-5
    assert torch.equal(age[4:], vectors["age"][4:]) and not age[1].any()
    along = (vectors["age"] * vectors["glasses"]).sum(1) / vectors["glasses"].square().sum(1)  # n1 − (n1ᵀn2)n2, eq. 1
    expected = vectors["age"] - along.nan_to_num()[:, None] * vectors["glasses"]
    torch.testing.assert_close(age, expected)
    both = directions.keeping(["glasses", "gender"])["age"].vectors
    for name in ("glasses", "gender"):
        assert (both * vectors[name]).sum(1).abs().max() < 1e-5
    assert directions.keeping(()) is directions
    with pytest.raises(DirectionError, match="no direction 'hat'"):
        directions.keeping(["hat"])
