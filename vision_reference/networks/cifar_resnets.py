"""ResNets for images of 32x32 pixels, on which distillation methods are compared.

Source: He et al. 2016, "Deep residual learning for image recognition", section 4.2: a 3x3 convolution, three stages of
n blocks with 16, 32 and 64 channels (the first block of the second and third halves the resolution), global average
pooling, one linear layer; depth 6 n + 2. Like the literature on distillation (Tian et al. 2020, arXiv 1910.10699), and
unlike that section, a shortcut that changes shape is a 1x1 convolution with batch normalization. The wider networks
``resnet8x4`` and ``resnet32x4`` have a first convolution of 32 channels and stages of 64, 128 and 256.
"""

from torch import Tensor, nn

# Blocks in each stage, channels of the first convolution and of the stages.
_SHAPES = {f"resnet{6 * blocks + 2}": (blocks, (16, 16, 32, 64)) for blocks in (1, 2, 3, 5, 7, 9, 18)}
_SHAPES |= {f"resnet{6 * blocks + 2}x4": (blocks, (32, 64, 128, 256)) for blocks in (1, 5)}

NAMES = tuple(_SHAPES)


def build(name: str, num_classes: int) -> nn.Module:
    """A freshly initialized network, ``name`` one of ``NAMES``: images (B, 3, H, W) to logits (B, num_classes)."""
    return CifarResNet(*_SHAPES[name], num_classes)


class CifarResNet(nn.Module):
    """The network of the module's docstring; its parts carry the names that torchvision's ResNets give them.

    Args:
        blocks: n, in each stage.
        channels: of the first convolution and of the three stages.
        num_classes: K.
    """

    def __init__(self, blocks: int, channels: tuple[int, int, int, int], num_classes: int) -> None:
        super().__init__()
        first, *stages = channels
        self.conv1 = nn.Conv2d(3, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU(inplace=True)
        incoming = (first, *stages)
        self.layer1, self.layer2, self.layer3 = (
            _stage(incoming[number], width, blocks, stride=1 if number == 0 else 2)
            for number, width in enumerate(stages)
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(stages[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of ``images`` (B, 3, H, W)."""
        features = self.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        return self.fc(self.avgpool(features).flatten(1))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (B, incoming, H, W) to (B, outgoing, H / stride, W / stride)."""

    def __init__(self, incoming: int, outgoing: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(incoming, outgoing, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outgoing)
        self.conv2 = nn.Conv2d(outgoing, outgoing, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outgoing)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or incoming != outgoing:
            shortcut = nn.Conv2d(incoming, outgoing, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outgoing))

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        inner = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(inner)) + self.downsample(x))


def _stage(incoming: int, outgoing: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(incoming, outgoing, stride)
    return nn.Sequential(first, *(BasicBlock(outgoing, outgoing, 1) for _ in range(blocks - 1)))
