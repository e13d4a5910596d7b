import pytest
import torch

from pardalis.vq.losses import l1_and_l2, psnr


def test_l1_and_l2_of_a_constant_difference():
    l1, l2 = l1_and_l2(torch.full((1, 3, 4, 4), 0.5), torch.zeros(1, 3, 4, 4))
    assert (l1.item(), l2.item()) == (0.5, 0.25)


def test_psnr_of_each_image():
    pixels = torch.zeros(3, 3, 8, 8)
    off = torch.stack([pixels[0] + 0.2, pixels[1] + 0.02, pixels[2]])
    assert psnr(off, pixels).tolist() == pytest.approx([20.0, 40.0, 86.02], abs=0.01)


def test_psnr_clamps_the_reconstruction():
    white = torch.ones(1, 3, 8, 8)
    assert psnr(white * 1.7, white).item() == pytest.approx(86.02, abs=0.01)
