"""The independent reading of codes agrees with compressed-tensors' own."""

import pytest
import torch
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.quant_args import FP4_E2M1_DATA

from compress.export.codes import E2M1, expand, round_to_fp4, unpack_fp4, unpack_int


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("columns", [32, 40])
def test_integers_unpack_to_what_was_packed(bits, columns):
    generator = torch.Generator().manual_seed(bits)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    codes = torch.randint(low, high, (5, columns), generator=generator, dtype=torch.int8)
    assert torch.equal(
        unpack_int(pack_to_int32(codes, bits), bits=bits, columns=columns), codes.float()
    )


def test_fp4_values_unpack_to_what_was_packed():
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([*E2M1, *(-v for v in E2M1)])[
        torch.randint(0, 16, (4, 32), generator=generator)
    ]
    assert torch.equal(unpack_fp4(pack_fp4_to_uint8(values)), values)


def test_fp4_rounding_agrees_on_a_fine_grid_with_all_ties():
    values = torch.arange(-7, 7, 1 / 64)
    assert torch.equal(round_to_fp4(values), FP4_E2M1_DATA.cast_to_fp4(values.clamp(-6, 6)) + 0.0)


def test_block_scales_cover_their_blocks_and_no_more():
    args = QuantizationArgs(type="float", strategy="block", block_structure=[2, 3])
    scale = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert expand(scale, args, (3, 5)).tolist() == [
        [1, 1, 1, 2, 2],
        [1, 1, 1, 2, 2],
        [3, 3, 3, 4, 4],
    ]
