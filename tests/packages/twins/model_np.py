"""The twin for a framework that was written by hand."""

from handmade import BatchNorm, Convolution, Dense, Flatten, MaxPool, Relu


def build(width, classes):
    return [Convolution(1, width), BatchNorm(width), Relu(), MaxPool(), Flatten(), Dense(width * 16, classes)]
