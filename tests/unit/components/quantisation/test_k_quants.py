"""Q4_K and Q6_K: the bytes, and how near they come to the weights."""

import ctypes

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from bloomery.components.quantisation.k_quants import CHUNK, q4_k, q6_k

ROUNDED = {"Q4_K": q4_k, "Q6_K": q6_k}


def unpacked(kind, content):
    return dequantize(content, GGMLQuantizationType[kind])


def relative_error(kind, content, weight):
    return float(np.square(unpacked(kind, content) - weight).sum() / np.square(weight).sum())


def test_q4_k_by_hand():
    scales, lows = [63, 1, 2, 3, 33, 17, 5, 48], [63, 0, 1, 2, 16, 32, 47, 7]
    up = np.tile(np.arange(16), 2)
    blocks = [scale * (15 - up if b % 2 else up) - low for b, (scale, low) in enumerate(zip(scales, lows, strict=True))]
    weight = np.concatenate(blocks).astype(np.float32)[None]
    content = q4_k(weight)
    one = [0x00, 0x3C]  # 1.0 in fp16
    low_bits_of_the_first_four = [63 + 128, 1 + 64, 2, 3 + 192], [63 + 64, 0 + 128, 1 + 128, 2]
    the_other_four = [1, 1, 5 + 15 * 16, 7 * 16]
    assert content[0, :16].tolist() == [*one, *one, *sum(low_bits_of_the_first_four, []), *the_other_four]
    assert content[0, 16:].tolist() == [level + 16 * (15 - level) for level in up.tolist()] * 4
    assert np.array_equal(unpacked("Q4_K", content), weight)


def test_q6_k_by_hand():
    scales = [128, 1, -2, 3, -64, 127, 100, 5, 6, 7, 8, 9, -10, 11, 12, 13]
    levels = np.array([[0, *(4 * w + b % 4 for w in range(1, 16))] for b in range(16)]) - 32
    weight = (levels * np.array(scales)[:, None]).reshape(1, 256).astype(np.float32)
    content = q6_k(weight)
    assert content[0, -2:].tolist() == [0x00, 0xBC]  # -1.0: the largest scale is -128 of it
    assert content[0, 192:208].view(np.int8).tolist() == [-scale for scale in scales]
    # Levels from 0: 4 for the weights 1 and 65, 8 for 2 and 66 (their low bits), 60 or 62 for 15, 47, 79, 111 (high).
    assert content[0, 1:3].tolist() == [4 + 4 * 16, 8 + 8 * 16]
    assert content[0, 128 + 15] == 3 + 3 * 4 + 3 * 16 + 3 * 64
    assert np.array_equal(unpacked("Q6_K", content), weight)


@pytest.mark.parametrize(("kind", "most"), [("Q4_K", 0.008), ("Q6_K", 0.0005)])
def test_rows_of_any_number_come_near(kind, most):
    weight = np.random.default_rng(0).standard_t(5, (CHUNK // 2 + 3, 512)).astype(np.float32)
    content = ROUNDED[kind](weight)
    assert len(content) == len(weight) and relative_error(kind, content, weight) < most
    assert np.array_equal(content[-3:], ROUNDED[kind](weight[-3:]))


def test_q4_k_is_nearer_than_q4_0_of_equal_size():
    weight = np.random.default_rng(1).standard_normal((64, 256)).astype(np.float32)
    plain = quantize(weight, GGMLQuantizationType.Q4_0)
    assert q4_k(weight).shape == plain.shape
    assert relative_error("Q4_K", q4_k(weight), weight) < 0.7 * relative_error("Q4_0", plain, weight)


@pytest.mark.parametrize("kind", ROUNDED)
def test_blocks_without_a_range(kind):
    weight = np.zeros((4, 256), np.float32)
    weight[1], weight[2], weight[3, 7] = 0.3, -0.3, 5e-8
    weight[3, 64:] = np.repeat([2.0, -3.0, 0.0], 64)
    found = unpacked(kind, ROUNDED[kind](weight))
    assert np.array_equal(found[0], weight[0])
    assert np.abs(found - weight).max() < 0.05 and np.abs(found[1:3] - weight[1:3]).max() < 0.003


@pytest.mark.parametrize(("kind", "number"), [("Q4_K", 12), ("Q6_K", 14)])
def test_no_further_off_than_llama_cpp(kind, number):
    package = pytest.importorskip("xllamacpp", reason="llama.cpp itself: pip install 'bloomery[test]'")
    library = ctypes.CDLL(package.xllamacpp.__file__)
    if not hasattr(library, "ggml_quantize_chunk"):
        pytest.skip("this xllamacpp hides ggml's functions")
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    weight = np.random.default_rng(2).standard_t(5, (64, 512)).astype(np.float32)
    content = ROUNDED[kind](weight)
    theirs = np.zeros_like(content)
    sizes = (ctypes.c_int64(size) for size in (0, *weight.shape))
    addresses = (ctypes.c_void_p(array.ctypes.data) for array in (weight, theirs))
    assert library.ggml_quantize_chunk(number, *addresses, *sizes, None) == theirs.size
    assert relative_error(kind, content, weight) <= relative_error(kind, theirs, weight)
