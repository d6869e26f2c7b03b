"""A little of everything: convolution, batch normalisation with its statistics, pooling, a dense layer."""

from torch import nn


def build(width, classes):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(width * 16, classes)
    )
