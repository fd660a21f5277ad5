"""Other libraries' names for the tensors of the three networks, as tables that read both ways.

A table is a list of rules, one per kind of tensor: the foreign name, the own path, the order of the
axes. Own paths are dotted: ``stage1.0.conv1.kernel``. NumPy only.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from flaxmed.types import InputError

Tensors = Mapping[str, np.ndarray]
Axes = tuple[int, ...] | None

SAME: Axes = None
CONV: Axes = (2, 3, 1, 0)  # torch [out, in, h, w] -> [h, w, in, out]; depthwise [c, 1, h, w] alike
LINEAR: Axes = (1, 0)  # torch [out, in] -> [in, out]
KERAS_DEPTHWISE: Axes = (0, 1, 3, 2)  # Keras [h, w, c, 1] -> [h, w, 1, c]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of a table.

    Attributes:
        foreign: The other library's name. ``{s}`` stands for a whole number, ``{s+1}`` for that
            number plus one.
        own: The path in this library, with the same letters.
        axes: Order of the foreign axes that gives the own layout; None if they agree.
    """

    foreign: str
    own: str
    axes: Axes = SAME


def _torch_norm(foreign: str, own: str) -> list[Rule]:
    return [
        Rule(f"{foreign}.weight", f"{own}.scale"),
        Rule(f"{foreign}.bias", f"{own}.bias"),
        Rule(f"{foreign}.running_mean", f"{own}.mean"),
        Rule(f"{foreign}.running_var", f"{own}.var"),
    ]


def _torch_linear(foreign: str) -> list[Rule]:
    return [
        Rule(f"{foreign}.weight", "classifier.kernel", LINEAR),
        Rule(f"{foreign}.bias", "classifier.bias"),
    ]


def _keras_norm(foreign: str, own: str) -> list[Rule]:
    return [
        Rule(f"{foreign}/gamma", f"{own}.scale"),
        Rule(f"{foreign}/beta", f"{own}.bias"),
        Rule(f"{foreign}/moving_mean", f"{own}.mean"),
        Rule(f"{foreign}/moving_variance", f"{own}.var"),
    ]


_KERAS_HEAD = [
    Rule("predictions/kernel", "classifier.kernel"),
    Rule("predictions/bias", "classifier.bias"),
]


def _resnet(shortcut: str, head: str) -> list[Rule]:
    """torchvision's and timm's names; MedMNIST's differ in the shortcut and the head."""
    return [
        Rule("conv1.weight", "stem.conv.kernel", CONV),
        *_torch_norm("bn1", "stem.norm"),
        Rule("layer{s}.{b}.conv{k}.weight", "stage{s}.{b}.conv{k}.kernel", CONV),
        *_torch_norm("layer{s}.{b}.bn{k}", "stage{s}.{b}.norm{k}"),
        Rule(f"layer{{s}}.{{b}}.{shortcut}.0.weight", "stage{s}.{b}.shortcut.conv.kernel", CONV),
        *_torch_norm(f"layer{{s}}.{{b}}.{shortcut}.1", "stage{s}.{b}.shortcut.norm"),
        *_torch_linear(head),
    ]


def _torchvision_densenet() -> list[Rule]:
    layer, own = "features.denseblock{s}.denselayer{b+1}", "stage{s}.{b}"
    return [
        Rule("features.conv0.weight", "stem.conv.kernel", CONV),
        *_torch_norm("features.norm0", "stem.norm"),
        *_torch_norm(f"{layer}.norm{{k}}", f"{own}.norm{{k}}"),
        Rule(f"{layer}.conv{{k}}.weight", f"{own}.conv{{k}}.kernel", CONV),
        *_torch_norm("features.transition{s}.norm", "transition{s}.norm"),
        Rule("features.transition{s}.conv.weight", "transition{s}.conv.kernel", CONV),
        *_torch_norm("features.norm5", "norm"),
        *_torch_linear("classifier"),
    ]


def _kerashub_resnet() -> list[Rule]:
    block, own = "stack{s}_block{b}", "stage{s+1}.{b}"
    return [
        Rule("conv1_conv/kernel", "stem.conv.kernel"),
        *_keras_norm("conv1_bn", "stem.norm"),
        Rule(f"{block}_0_conv/kernel", f"{own}.shortcut.conv.kernel"),
        *_keras_norm(f"{block}_0_bn", f"{own}.shortcut.norm"),
        Rule(f"{block}_{{k}}_conv/kernel", f"{own}.conv{{k}}.kernel"),
        *_keras_norm(f"{block}_{{k}}_bn", f"{own}.norm{{k}}"),
        *_KERAS_HEAD,
    ]


def _keras_densenet() -> list[Rule]:
    layer, own = "conv{s+1}_block{b+1}", "stage{s}.{b}"
    return [
        Rule("conv1_conv/kernel", "stem.conv.kernel"),
        *_keras_norm("conv1_bn", "stem.norm"),
        *_keras_norm(f"{layer}_0_bn", f"{own}.norm1"),
        Rule(f"{layer}_1_conv/kernel", f"{own}.conv1.kernel"),
        *_keras_norm(f"{layer}_1_bn", f"{own}.norm2"),
        Rule(f"{layer}_2_conv/kernel", f"{own}.conv2.kernel"),
        *_keras_norm("pool{s+1}_bn", "transition{s}.norm"),
        Rule("pool{s+1}_conv/kernel", "transition{s}.conv.kernel"),
        *_keras_norm("bn", "norm"),
        *_KERAS_HEAD,
    ]


# Both ports number the blocks through; Keras counts the stem as the first and timm does not.
_XCEPTION_BLOCKS = [
    *(f"entry{i}" for i in range(1, 4)),
    *(f"middle{i}" for i in range(1, 9)),
    "exit1",
]


def _timm_separable(conv: str, norm: str, own: str) -> list[Rule]:
    return [
        Rule(f"{conv}.conv1.weight", f"{own}.conv.depthwise.kernel", CONV),
        Rule(f"{conv}.pointwise.weight", f"{own}.conv.pointwise.kernel", CONV),
        *_torch_norm(norm, f"{own}.norm"),
    ]


def _timm_xception() -> list[Rule]:
    rules = [
        Rule("conv1.weight", "stem.conv1.kernel", CONV),
        *_torch_norm("bn1", "stem.norm1"),
        Rule("conv2.weight", "stem.conv2.kernel", CONV),
        *_torch_norm("bn2", "stem.norm2"),
        *_timm_separable("conv3", "bn3", "exit2"),
        *_timm_separable("conv4", "bn4", "exit3"),
        *_torch_linear("fc"),
    ]
    for number, own in enumerate(_XCEPTION_BLOCKS, start=1):
        block = f"block{number}"
        rules.append(Rule(f"{block}.skip.weight", f"{own}.shortcut.conv.kernel", CONV))
        rules += _torch_norm(f"{block}.skipbn", f"{own}.shortcut.norm")
        # rep is a sequence of (ReLU, separable convolution, norm); block1 has no first ReLU
        first = 0 if number == 1 else 1
        for k in range(3):
            conv, norm = f"{block}.rep.{first + 3 * k}", f"{block}.rep.{first + 3 * k + 1}"
            rules += _timm_separable(conv, norm, f"{own}.sep{k + 1}")
    return rules


def _keras_separable(foreign: str, own: str) -> list[Rule]:
    return [
        Rule(f"{foreign}/depthwise_kernel", f"{own}.conv.depthwise.kernel", KERAS_DEPTHWISE),
        Rule(f"{foreign}/pointwise_kernel", f"{own}.conv.pointwise.kernel"),
        *_keras_norm(f"{foreign}_bn", f"{own}.norm"),
    ]


def _keras_xception() -> list[Rule]:
    rules = [
        Rule("block1_conv{k}/kernel", "stem.conv{k}.kernel"),
        *_keras_norm("block1_conv{k}_bn", "stem.norm{k}"),
        *_keras_separable("block14_sepconv1", "exit2"),
        *_keras_separable("block14_sepconv2", "exit3"),
        *_KERAS_HEAD,
    ]
    for number, own in enumerate(_XCEPTION_BLOCKS, start=2):
        rules += _keras_separable(f"block{number}_sepconv{{k}}", f"{own}.sep{{k}}")
    for suffix, own in _KERAS_SHORTCUTS.values():
        rules.append(Rule(f"conv2d{suffix}/kernel", f"{own}.shortcut.conv.kernel"))
        rules += _keras_norm(f"batch_normalization{suffix}", f"{own}.shortcut.norm")
    return rules


# Keras leaves the four shortcuts unnamed and numbers them by a counter of the process, so the
# number says nothing; their widths do. By output width: the number in a fresh process, the block.
_KERAS_SHORTCUTS = {
    128: ("", "entry1"),
    256: ("_1", "entry2"),
    728: ("_2", "entry3"),
    1024: ("_3", "exit1"),
}


def _number_keras_shortcuts(tensors: Tensors) -> Tensors:
    """Gives the unnamed layers of Keras's Xception the numbers of a fresh process."""
    renamed: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        match = re.fullmatch(r"(conv2d|batch_normalization)(?:_\d+)?(/\w+)", name)
        width = value.shape[-1] if match and value.ndim else 0
        if match and width in _KERAS_SHORTCUTS:
            name = match[1] + _KERAS_SHORTCUTS[width][0] + match[2]
        renamed[_fresh(name, renamed)] = value
    return renamed


def _respelling(*changes: tuple[str, str]) -> Callable[[Tensors], Tensors]:
    """Makes spellings of the same names uniform: regular expressions, and what replaces them."""

    def respell(tensors: Tensors) -> Tensors:
        renamed: dict[str, np.ndarray] = {}
        for name, value in tensors.items():
            for pattern, replacement in changes:
                name = re.sub(pattern, replacement, name)
            renamed[_fresh(name, renamed)] = value
        return renamed

    return respell


_torchvision_densenet_spellings = _respelling(
    (r"(denselayer\d+)\.layers\.", r"\1."),  # MONAI's
    (r"^class_layers\.out\.", "classifier."),
    (r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2"),  # the published .pth: norm.1 for norm1
)
_timm_xception_spellings = _respelling((r"^last_linear\.", "fc."))  # Cadene's


def _fresh(name: str, taken: Iterable[str]) -> str:
    if name in taken:
        raise InputError(f"two tensors mean the same one: {name}")
    return name


# Foreign tensors left out on purpose, and why.
DROPPED = {
    r".*\.num_batches_tracked": "a step counter that only momentum=None would use",
    r"op_threshs": "torchxrayvision's operating points, which come after the network",
}


def drop_reason(name: str) -> str | None:
    """Why a foreign tensor is left out on purpose, or None if it is not."""
    return next((reason for what, reason in DROPPED.items() if re.fullmatch(what, name)), None)


@dataclasses.dataclass(frozen=True)
class Table:
    """How one library names the tensors of one network.

    Attributes:
        rules: One per kind of tensor; the first that matches a name decides.
        respell: Makes other spellings of the same names uniform, before the rules are read.
    """

    rules: Sequence[Rule]
    respell: Callable[[Tensors], Tensors] = dict

    def own(self, name: str) -> tuple[str, Axes] | None:
        """The own path of a foreign name, and the axes of its rule; None if no rule matches.

        Example:
            >>> TORCHVISION_DENSENET.own("features.denseblock2.denselayer1.norm2.weight")
            ('stage2.0.norm2.scale', None)
        """
        return self._translate(name, "foreign", "own")

    def foreign(self, path: str) -> tuple[str, Axes] | None:
        """The foreign name of an own path, and the axes of its rule; None if no rule matches.

        Example:
            >>> TIMM_XCEPTION.foreign("entry2.sep1.norm.var")
            ('block2.rep.2.running_var', None)
        """
        return self._translate(path, "own", "foreign")

    def _translate(self, name: str, source: str, target: str) -> tuple[str, Axes] | None:
        for rule in self.rules:
            template = getattr(rule, source)
            match = _pattern(template).fullmatch(name)
            if match:
                offsets = _offsets(template)
                numbers = {key: int(n) - offsets[key] for key, n in match.groupdict().items()}
                return _fill(getattr(rule, target), numbers), rule.axes
        return None


class OwnNames(Table):
    """flaxmed's own paths: every tensor is called what it is called here."""

    def own(self, name: str) -> tuple[str, Axes] | None:
        """The path itself."""
        return name, SAME

    def foreign(self, path: str) -> tuple[str, Axes] | None:
        """The path itself."""
        return path, SAME


_FIELD = re.compile(r"\{(\w)(?:\+(\d))?\}")


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    """``"stage{s}.{b}"`` as a regular expression with one group per letter."""
    pieces, end = [], 0
    for field in _FIELD.finditer(template):
        pieces += [re.escape(template[end : field.start()]), rf"(?P<{field[1]}>0|[1-9]\d*)"]
        end = field.end()
    return re.compile("".join([*pieces, re.escape(template[end:])]))


@functools.cache
def _offsets(template: str) -> dict[str, int]:
    return {field[1]: int(field[2] or 0) for field in _FIELD.finditer(template)}


def _fill(template: str, numbers: Mapping[str, int]) -> str:
    return _FIELD.sub(lambda field: str(numbers[field[1]] + int(field[2] or 0)), template)


TORCHVISION_RESNET = Table(_resnet("downsample", "fc"))  # timm's too
MEDMNIST_RESNET = Table(_resnet("shortcut", "linear"))
KERASHUB_RESNET = Table(_kerashub_resnet())
TORCHVISION_DENSENET = Table(_torchvision_densenet(), _torchvision_densenet_spellings)
KERAS_DENSENET = Table(_keras_densenet())
TIMM_XCEPTION = Table(_timm_xception(), _timm_xception_spellings)
KERAS_XCEPTION = Table(_keras_xception(), _number_keras_shortcuts)
OWN = OwnNames(())
