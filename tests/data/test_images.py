import pytest
import torch

from anysigma.data.images import from_uint8, to_uint8

ALL = torch.arange(256, dtype=torch.uint8)


def test_the_ends_are_exact():
    assert from_uint8(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]


def test_all_values_come_back():
    x = from_uint8(ALL)
    assert x.dtype == torch.float32
    assert torch.equal(to_uint8(x), ALL)


def test_the_values_are_evenly_spaced():
    torch.testing.assert_close(from_uint8(ALL).double().diff(), torch.full((255,), 2 / 255).double(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_float_is_rounded_and_held_at_the_ends(dtype):
    x = torch.tensor([-9, -1.02, -1, 0, 1, 1.02, 9], dtype=dtype)
    images = to_uint8(x)
    assert images.dtype == torch.uint8
    assert images.tolist() == [0, 0, 0, 128, 255, 255, 255]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_short_float_is_widened_before_it_is_scaled(dtype):
    # bfloat16 holds no halves above 128: scaled in its own arithmetic, a value would land on a neighbouring grey.
    x = torch.linspace(-1, 1, 5001).to(dtype)
    assert torch.equal(to_uint8(x), to_uint8(x.double()))


def test_rounding_is_to_the_nearest():
    # Truncation would darken every picture by half a grey level.
    x = (torch.arange(255, dtype=torch.float64) + 0.9) / 127.5 - 1
    assert torch.equal(to_uint8(x), ALL[1:])


def test_the_shape_is_kept():
    assert to_uint8(from_uint8(ALL.reshape(2, 4, 8, 4))).shape == (2, 4, 8, 4)
