"""The twin for MindSpore: its momentum of running statistics counts the other way round."""

from mindspore import nn


def build(width, classes):
    return nn.SequentialCell(
        nn.Conv2d(1, width, 3, pad_mode="pad", padding=1, has_bias=True),
        nn.BatchNorm2d(width, eps=1e-5, momentum=0.9),
        nn.ReLU(),
        nn.MaxPool2d(2, 2),
        nn.Flatten(),
        nn.Dense(width * 16, classes),
    )
