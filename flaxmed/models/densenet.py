"""DenseNet-121: dense blocks joined by transition layers.

Huang, Liu, van der Maaten & Weinberger, "Densely Connected Convolutional Networks", CVPR 2017,
arXiv:1608.06993: Table 1 (DenseNet-121, k = 32) and Figure 2; the bottleneck and the halving
transition make it the paper's DenseNet-BC. Constants are those of torchvision's ``densenet121``.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Num

from flaxmed.models.checks import check_images, check_network
from flaxmed.models.initializers import torch_linear_init, variance_scaling, zeros
from flaxmed.models.layers import (
    BatchNorm,
    BatchNormConfig,
    Classifier,
    Conv,
    ConvNorm,
    Moments,
    Padding,
    avg_pool,
    max_pool,
    norm_conv_norm,
    run_block,
    side_by_side,
)

# torchvision densenet.py: nn.init.kaiming_normal_(m.weight), whose default is fan_in, gain sqrt(2).
conv_init = variance_scaling(2.0, "fan_in", "normal")


@dataclass(frozen=True)
class DenseNetConfig:
    """A DenseNet-BC in numbers.

    Attributes:
        stage_sizes: Dense layers in each block.
        growth: Channels that each dense layer adds (the paper's k).
        bottleneck: Width of the 1x1 convolution, in multiples of ``growth``.
        stem_width: Channels of the stem.
        bn: Batch normalisation constants.
        stem_padding: Of the 7x7 convolution and of the pool after it: 3 and 1, or "SAME" for both,
            as KerasHub pads.
    """

    stage_sizes: tuple[int, ...]
    growth: int
    bottleneck: int
    stem_width: int
    bn: BatchNormConfig
    stem_padding: tuple[Padding, Padding] = (3, 1)


# torch.nn.BatchNorm2d defaults: momentum 0.1 (0.9 as Flax counts), eps 1e-5, unbiased variance.
DENSENET121 = DenseNetConfig(
    stage_sizes=(6, 12, 24, 16),
    growth=32,
    bottleneck=4,
    stem_width=64,
    bn=BatchNormConfig(momentum=0.9, epsilon=1e-5, unbiased=True),
)

# keras.applications.DenseNet121: other batch-normalisation constants, the same padding.
KERAS_DENSENET121 = replace(
    DENSENET121, bn=BatchNormConfig(momentum=0.99, epsilon=1.001e-5, unbiased=False)
)

# keras_hub.models.DenseNetBackbone: Keras's constants, and padding="same" where Keras pads by zeros
# on all sides. At an even size the two differ by a pixel.
KERASHUB_DENSENET121 = replace(KERAS_DENSENET121, stem_padding=("SAME", "SAME"))


class Features(NamedTuple):
    """What a dense block has computed so far.

    Attributes:
        maps: Its input, and what each layer added: channels that lie side by side.
        moments: Of each map. Every norm of the block sees all maps, of the same batch, so that
            their moments are computed once; None of a map where its first norm does without.
    """

    maps: list[Float[Array, "n h w _"]]
    moments: list[Moments | None]

    def append(
        self, x: Float[Array, "n h w _"], norm: BatchNorm, mask: Bool[Array, " n"] | None
    ) -> None:
        """One more map; ``norm`` is the first that will see it."""
        self.maps.append(x)
        self.moments.append(norm.moments(x, mask))


class DenseLayer(nnx.Module):
    """BN-ReLU-1x1, BN-ReLU-3x3: the channels that a layer adds to those before it."""

    def __init__(self, in_channels: int, *, config: DenseNetConfig, dtype: Any, rngs: nnx.Rngs):
        options: dict[str, Any] = dict(kernel_init=conv_init, dtype=dtype, rngs=rngs)
        width = config.bottleneck * config.growth
        self.norm1 = BatchNorm(in_channels, config.bn, dtype=dtype)
        self.conv1 = Conv(in_channels, width, 1, padding=0, **options)
        self.norm2 = BatchNorm(width, config.bn, dtype=dtype)
        self.conv2 = Conv(width, config.growth, 3, padding=1, **options)

    def __call__(
        self, so_far: Features, mask: Bool[Array, " n"] | None = None
    ) -> Float[Array, "n h w o"]:
        maps, moments = so_far
        x = norm_conv_norm(self.norm1, self.conv1, self.norm2, maps, mask, moments)
        return self.conv2(x)


class Transition(nnx.Module):
    """BN-ReLU-1x1 to half the channels, then 2x2 average pooling."""

    def __init__(self, in_channels: int, *, config: DenseNetConfig, dtype: Any, rngs: nnx.Rngs):
        self.norm = BatchNorm(in_channels, config.bn, dtype=dtype)
        self.conv = Conv(
            in_channels,
            in_channels // 2,
            1,
            padding=0,
            kernel_init=conv_init,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self,
        x: Float[Array, "n h w c"],
        mask: Bool[Array, " n"] | None = None,
        moments: Moments | None = None,
    ) -> Float[Array, "n oh ow o"]:
        x = self.conv(self.norm(x, mask, relu=True, moments=moments))
        return avg_pool(x, window=2)


class DenseNet(nnx.Module):
    """A DenseNet-BC.

    Called on normalised floating-point images ``[N, H, W, in_channels]`` and, in training, a mask
    ``[N]`` that is false for rows of padding, it gives logits ``[N, num_classes]`` in float32
    (float64 where ``dtype`` is). A fresh network evaluates; ``train()``, ``eval()`` and
    ``nnx.view(..., use_running_average=...)`` switch it. Compile calls: ``nnx.jit``.

    Args:
        num_classes: How many logits.
        in_channels: Channels of the images.
        stem: "imagenet", as published, or "small", for images of 28 to 64 pixels: 3x3, stride 1,
            no pool.
        dtype: Of the computation. Parameters, norms and logits stay in float32, unless float64.
        remat: Whether training computes norms a second time to save memory (``run_block``).
        config: The network in numbers.
        rngs: Source of the initial values.

    Raises:
        InputError: For an unknown stem or a count below 1; when called, for images with another
            number of channels, smaller than ``minimum_size``, or not of floating point.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        stem: str = "imagenet",
        dtype: Any = jnp.float32,
        remat: bool = False,
        config: DenseNetConfig = DENSENET121,
        rngs: nnx.Rngs,
    ):
        check_network(num_classes, in_channels, stem)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.stem_name = stem
        self.dtype = dtype
        self.remat = remat
        self.config = config

        width = config.stem_width
        imagenet = stem == "imagenet"
        self.stem = ConvNorm(
            in_channels,
            width,
            7 if imagenet else 3,
            stride=2 if imagenet else 1,
            padding=config.stem_padding[0] if imagenet else 1,
            bn=config.bn,
            kernel_init=conv_init,
            dtype=dtype,
            rngs=rngs,
        )
        options: dict[str, Any] = dict(config=config, dtype=dtype, rngs=rngs)
        for i, size in enumerate(config.stage_sizes):
            if i > 0:
                setattr(self, f"transition{i}", Transition(width, **options))
                width //= 2
            layers = [DenseLayer(width + j * config.growth, **options) for j in range(size)]
            setattr(self, f"stage{i + 1}", nnx.List(layers))
            width += size * config.growth
        self.norm = BatchNorm(width, config.bn, dtype=dtype)
        self.classifier = Classifier(
            width,
            num_classes,
            kernel_init=torch_linear_init(width),
            bias_init=zeros,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self, images: Num[Array, "n h w c"], mask: Bool[Array, " n"] | None = None
    ) -> Float[Array, "n k"]:
        return self.head(self.features(images, mask)["final"])

    @property
    def stages(self) -> list[str]:
        """Of what it consists, in the order of the computation; the beginnings of all paths."""
        later = range(1, len(self.config.stage_sizes))
        pairs = (name for i in later for name in (f"transition{i}", f"stage{i + 1}"))
        return ["stem", "stage1", *pairs, "norm", "classifier"]

    def features(
        self, images: Num[Array, "n h w c"], mask: Bool[Array, " n"] | None = None
    ) -> dict[str, Float[Array, "n _h _w _c"]]:
        """The maps ``stem`` (after the pool), ``stage1``, ``transition1`` to ``stage4``, ``final``.

        ``final`` is ``stage4`` after the last norm and ReLU.

        Args:
            images: As for a call.
            mask: As for a call.

        Returns:
            Maps by name, in the order of the computation (also when returned from ``jax.jit``,
            which sorts the keys of a plain dict).
        """
        check_images(
            images,
            network=type(self).__name__,
            stem=self.stem_name,
            in_channels=self.in_channels,
            minimum=self.minimum_size(self.stem_name, self.config),
        )
        maps: OrderedDict[str, Array] = OrderedDict()
        x = self.stem(images.astype(self.dtype), mask, relu=True)
        if self.stem_name == "imagenet":
            x = max_pool(x, window=3, stride=2, padding=self.config.stem_padding[1])
        maps["stem"] = x
        moments = None
        for i in range(1, 1 + len(self.config.stage_sizes)):
            if i > 1:
                transition = getattr(self, f"transition{i - 1}")
                x = maps[f"transition{i - 1}"] = transition(x, mask, moments)
            x, moments = self._stage(i, x, mask)
            maps[f"stage{i}"] = x
        maps["final"] = self.norm(x, mask, relu=True, moments=moments)
        return maps

    def _stage(
        self, i: int, x: Float[Array, "n h w _"], mask: Bool[Array, " n"] | None
    ) -> tuple[Float[Array, "n h w c"], Moments | None]:
        """Stage ``i``, counted from 1; and of its channels what the norm after it asks for."""
        layers = getattr(self, f"stage{i}")
        last = i == len(self.config.stage_sizes)
        after = self.norm if last else getattr(self, f"transition{i}").norm
        first, *later = (*(layer.norm1 for layer in layers), after)
        features = Features([], [])
        features.append(x, first, mask)
        for layer, norm in zip(layers, later, strict=True):
            features.append(run_block(layer, features, mask, remat=self.remat), norm, mask)
        # Every layer concatenates the maps anew: the gradients of a chain of concatenations fuse
        # into programs that take XLA minutes to compile.
        return jnp.concatenate(features.maps, axis=-1), side_by_side(features.moments)

    def head(self, final: Float[Array, "n h w c"]) -> Float[Array, "n k"]:
        """Global average pooling and the linear classifier."""
        return self.classifier(final)

    @staticmethod
    def minimum_size(stem: str, config: DenseNetConfig = DENSENET121) -> int:
        """The smallest side for which no strided layer is given a 1x1 map.

        The pools of the transitions round down, so the map before the first of t transitions needs
        2**t pixels; the imagenet stem rounds up twice. DenseNet-121: 29, as torchvision documents.
        """
        first_map = 2 ** (len(config.stage_sizes) - 1)
        return 4 * (first_map - 1) + 1 if stem == "imagenet" else first_map


class DenseNet121(DenseNet):
    """DenseNet-121 (Huang et al. 2017, Table 1): :class:`DenseNet` with 6, 12, 24, 16 layers.

    Floating-point images ``[N, H, W, in_channels]`` give logits ``[N, num_classes]``; arguments and
    errors are those of :class:`DenseNet`. With ``stem="imagenet"`` it is torchvision's network.

    Example:
        >>> model = nnx.eval_shape(lambda: DenseNet121(2, rngs=nnx.Rngs(0)))  # shapes alone
        >>> model.classifier.kernel.shape
        (1024, 2)
    """
