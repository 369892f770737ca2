"""Inception-v1's table, shared by the 2D parent and the inflated I3D, and the loop over it."""

from __future__ import annotations

from dataclasses import dataclass

from keras import layers

from tf_covid.models.blocks import conv_unit, max_pool, zero_pad
from tf_covid.tensor import DType, Tensor


@dataclass(frozen=True)
class InceptionBlock:
    """One endpoint of Inception-v1.

    Args:
        suffix: Endpoint name after its kind, e.g. "1a_7x7".
        kind: "conv", "pool" or "mixed".
        filters: One number for a convolution; for a mixed block the six of its branches
            (branch 0; branch 1 reduce, 3×3; branch 2 reduce, 3×3; branch 3).
        kernel: Kernel or pool size.
        stride: Stride.
        time: Kernel and stride along time in three dimensions, where they differ from the plane's.
    """

    suffix: str
    kind: str
    filters: tuple[int, ...] = ()
    kernel: int = 3
    stride: int = 1
    time: tuple[int, int] | None = None


# Carreira & Zisserman 2017, figure 3; the released kinetics-i3d has the same numbers.
# The first two pools leave time alone: too much temporal pooling early loses the motion (the
# paper's section 2.4).
BLOCKS = (
    InceptionBlock("1a_7x7", "conv", (64,), 7, 2),
    InceptionBlock("2a_3x3", "pool", kernel=3, stride=2, time=(1, 1)),
    InceptionBlock("2b_1x1", "conv", (64,), 1),
    InceptionBlock("2c_3x3", "conv", (192,), 3),
    InceptionBlock("3a_3x3", "pool", kernel=3, stride=2, time=(1, 1)),
    InceptionBlock("3b", "mixed", (64, 96, 128, 16, 32, 32)),
    InceptionBlock("3c", "mixed", (128, 128, 192, 32, 96, 64)),
    InceptionBlock("4a_3x3", "pool", kernel=3, stride=2),
    InceptionBlock("4b", "mixed", (192, 96, 208, 16, 48, 64)),
    InceptionBlock("4c", "mixed", (160, 112, 224, 24, 64, 64)),
    InceptionBlock("4d", "mixed", (128, 128, 256, 24, 64, 64)),
    InceptionBlock("4e", "mixed", (112, 144, 288, 32, 64, 64)),
    InceptionBlock("4f", "mixed", (256, 160, 320, 32, 128, 128)),
    InceptionBlock("5a_2x2", "pool", kernel=2, stride=2),
    InceptionBlock("5b", "mixed", (256, 160, 320, 32, 128, 128)),
    InceptionBlock("5c", "mixed", (384, 192, 384, 48, 128, 128)),
)


def endpoint_names(rank: int) -> tuple[str, ...]:
    """Published names of the endpoints, first to last, for 2D ("Conv2d_1a_7x7") or 3D."""
    # TF-Slim's 2D pools are "MaxPool_2a_3x3", the I3D paper's 3D pools "MaxPool3d_2a_3x3".
    prefix = {
        "conv": f"Conv{rank}d_",
        "pool": "MaxPool3d_" if rank == 3 else "MaxPool_",
        "mixed": "Mixed_",
    }
    return tuple(prefix[block.kind] + block.suffix for block in BLOCKS)


def trunk(x: Tensor, dtype: DType = None, stem: str = "same") -> Tensor:
    """Inception-v1 from its input to Mixed_5c, in the rank of `x`.

    Each endpoint's layer bears its published name.

    Args:
        x: (N, H, W, C) or (N, D, H, W, C).
        dtype: Keras dtype policy.
        stem: Padding of the first convolution: "same", or "symmetric" with three zeros on every
            side, as torchvision's.

    Output: 1024 channels; the plane is 32 times smaller, time 8 times (rounded up).
    """
    rank = len(x.shape) - 2
    if stem not in ("same", "symmetric"):
        raise ValueError(f'stem must be "same" or "symmetric", not {stem!r}')
    for block, name in zip(BLOCKS, endpoint_names(rank), strict=True):
        if block.kind == "mixed":
            x = _mixed(x, name, block.filters, dtype)
            continue
        kernel, stride = (block.kernel,) * rank, (block.stride,) * rank
        if rank == 3 and block.time is not None:
            kernel, stride = (block.time[0], *kernel[1:]), (block.time[1], *stride[1:])
        if block.kind == "conv":
            padding = "same"
            if block is BLOCKS[0] and stem == "symmetric":
                x, padding = zero_pad(x, f"{name}_pad", block.kernel // 2, dtype=dtype), "valid"
            x = conv_unit(x, name, block.filters[0], kernel, stride, padding=padding, dtype=dtype)
        else:
            x = max_pool(x, name, kernel, stride, dtype=dtype)
    return x


def _mixed(x: Tensor, name: str, filters: tuple[int, ...], dtype: DType) -> Tensor:
    rank = len(x.shape) - 2
    conv, pool = f"Conv{rank}d", "MaxPool3d" if rank == 3 else "MaxPool"

    def unit(source: Tensor, branch: int, suffix: str, width: int, kernel: int) -> Tensor:
        return conv_unit(
            source, f"{name}_Branch_{branch}_{conv}_{suffix}", width, kernel, dtype=dtype
        )

    branch_0 = unit(x, 0, "0a_1x1", filters[0], 1)
    branch_1 = unit(unit(x, 1, "0a_1x1", filters[1], 1), 1, "0b_3x3", filters[2], 3)
    # 3×3, not the paper's 5×5: the released weights use 3×3. Their misprint in Mixed_5b ("0a_3x3")
    # is the converter's business; our layer names follow the pattern.
    branch_2 = unit(unit(x, 2, "0a_1x1", filters[3], 1), 2, "0b_3x3", filters[4], 3)
    pooled = max_pool(x, f"{name}_Branch_3_{pool}_0a_3x3", 3, 1, dtype=dtype)
    branch_3 = unit(pooled, 3, "0b_1x1", filters[5], 1)
    return layers.Concatenate(name=name, dtype=dtype)([branch_0, branch_1, branch_2, branch_3])
