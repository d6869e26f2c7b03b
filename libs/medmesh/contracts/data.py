"""What each hospital must hold to take part in a plan: images, volumes, signals, notes, or rows of a table."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from math import prod
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, StringConstraints, Tag, model_validator

from medmesh.contracts.message import Identifier, Record
from medmesh.contracts.pipeline import Pipeline

Classes = Annotated[tuple[str, ...], Field(min_length=2, max_length=100)]
Code = Annotated[str, StringConstraints(min_length=1, max_length=80)]
FeatureName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Modality = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9]{0,15}$")]
"""A defined term of PS3.3 C.7.3.1.1.1, such as MR, CT, ECG, EEG or AU (sound)."""
Side = Annotated[int, Field(ge=4, le=512)]


class ImageSchema(Record):
    """Images [samples, channels, size, size], float32 in 0..1, and a class each; with a pipeline, whatever it makes of them."""

    kind: Literal["images"] = "images"
    modality: str
    image_size: int = Field(ge=8, le=1024)
    channels: int = Field(default=1, ge=1, le=4)
    classes: Classes
    pipeline: Pipeline | None = None
    """Applied at the hospital before anything is trained or answered; it ends with `image_size` x `image_size` values."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return (self.channels, self.image_size, self.image_size)


class Feature(Record):
    """One column: a number within a range, scaled by the declared constants, or one of `codes`.

    A number enters the model as (value - center) / scale. Both are part of the plan and come from the literature or from the initiator's
    own patients: no hospital's statistics travel for it. `missing` adds an input that is 1 where there is no value.
    """

    name: FeatureName
    kind: Literal["number", "code"]
    unit: str = Field(default="", max_length=20)
    """UCUM, such as `mm[Hg]`; for people, not converted."""
    low: str | None = None
    high: str | None = None
    center: str = "0"
    scale: str = "1"
    codes: tuple[Code, ...] = Field(default=(), max_length=100)
    missing: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Feature:
        if self.kind == "code":
            if not self.codes or len(set(self.codes)) != len(self.codes):
                raise ValueError(f"{self.name}: give its codes, each once")
            if (self.low, self.high, self.center, self.scale, self.unit) != (None, None, "0", "1", ""):
                raise ValueError(f"{self.name}: a code has no unit, range or scale")
            return self
        if self.codes:
            raise ValueError(f"{self.name}: a number has no codes")
        if self.low is None or self.high is None or not decimal(self.low) < decimal(self.high):
            raise ValueError(f"{self.name}: give low and high, the first the smaller one")
        decimal(self.center)
        if decimal(self.scale) <= 0:
            raise ValueError(f"{self.name}: scale is more than 0")
        return self

    @property
    def width(self) -> int:
        """How many inputs of the model it becomes."""
        return (1 if self.kind == "number" else len(self.codes)) + self.missing


class TableSchema(Record):
    """Rows of the table of this name, with these features and a class each; float32 [samples, width].

    The name stands for the meaning: another set of features is another table.
    """

    kind: Literal["table"]
    table: Identifier
    features: Annotated[tuple[Feature, ...], Field(min_length=1, max_length=500)]
    classes: Classes

    @model_validator(mode="after")
    def _named_once(self) -> TableSchema:
        names = [feature.name for feature in self.features]
        if len(set(names)) != len(names):
            raise ValueError("features: one is named twice")
        return self

    @property
    def modality(self) -> str:
        """What hospitals' policies call it: `table:<name>`."""
        return f"table:{self.table}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return (sum(feature.width for feature in self.features),)


class VolumeSchema(Record):
    """Volumes [samples, 1, x, y, z], float32, and a class each.

    Axes point to right, anterior, superior (RAS). Values have mean 0 and standard deviation 1 over the volume. Each is brought to
    `spacing`, where one is given, and cut or filled with 0 around its centre to `size`. With a pipeline nothing is done to the volume but
    what that says, beginning with it as it lies in the file; it ends with `size`.
    """

    kind: Literal["volumes"]
    volume: Modality
    size: tuple[Side, Side, Side]
    spacing: tuple[str, str, str] | None = None
    """Millimetres, as decimal numbers. Without it voxels are taken as they lie, also of volumes that say nothing of their geometry."""
    classes: Classes
    pipeline: Pipeline | None = None

    @model_validator(mode="after")
    def _spaced(self) -> VolumeSchema:
        if self.spacing is not None and not all(Decimal("0.05") <= decimal(one) <= 100 for one in self.spacing):
            raise ValueError("spacing: 0.05 to 100 mm")
        if self.spacing is not None and self.pipeline is not None:
            raise ValueError("spacing: with a pipeline its step `resample` says it")
        if prod(self.size) > 1 << 26:
            raise ValueError("size: at most 67,108,864 voxels")
        return self

    @property
    def modality(self) -> str:
        """What hospitals' policies call it: `volume:<modality>`."""
        return f"volume:{self.volume}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return (1, *self.size)


class SignalSchema(Record):
    """Signals or sound [samples, channels, length], float32, and a class each.

    Each channel is found by its name in the file (capitals or not; the channels of a sound are named 1, 2, ...), brought to `rate`, to mean
    0 and standard deviation 1, and cut or filled with 0 at its end to `length`. With a pipeline nothing is done to the channels but what
    that says; it ends with `length` of each.
    """

    kind: Literal["signals"]
    signal: Modality
    channels: Annotated[tuple[Code, ...], Field(min_length=1, max_length=256)]
    rate: int = Field(ge=1, le=1_000_000)
    """Hertz."""
    length: int = Field(ge=1, le=1 << 24)
    """Samples of each channel."""
    classes: Classes
    pipeline: Pipeline | None = None

    @model_validator(mode="after")
    def _bounded(self) -> SignalSchema:
        if len({one.casefold() for one in self.channels}) != len(self.channels):
            raise ValueError("channels: one is named twice")
        if len(self.channels) * self.length > 1 << 26:
            raise ValueError("length: at most 67,108,864 numbers")
        return self

    @property
    def modality(self) -> str:
        """What hospitals' policies call it: `signal:<modality>`."""
        return f"signal:{self.signal}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return (len(self.channels), self.length)


class TextSchema(Record):
    """Notes as features [samples, size], float32, and a class each.

    A note is what rules or a person of the hospital left of it when it was taken in; held ones are none. No text is handed to training
    code: only what the pipeline makes of it, which begins with the step `ngrams` and ends with `size` numbers.
    """

    kind: Literal["texts"]
    text: Identifier
    """What the hospital's notes are called: `note` of files, the name of a column otherwise."""
    size: int = Field(ge=8, le=65_536)
    classes: Classes
    pipeline: Pipeline

    @model_validator(mode="after")
    def _counted(self) -> TextSchema:
        if not self.pipeline.steps or self.pipeline.steps[0].step != "ngrams":
            raise ValueError("pipeline: of texts it begins with the step ngrams")
        return self

    @property
    def modality(self) -> str:
        """What hospitals' policies call it: `text:<name>`."""
        return f"text:{self.text}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return (self.size,)


def decimal(text: str) -> Decimal:
    """A finite decimal number with at most twelve digits on either side of the point. Raises `ValueError`."""
    try:
        number = Decimal(text.strip())
    except InvalidOperation:
        raise ValueError("not a decimal number") from None
    if not number.is_finite() or abs(number) >= 10**12 or int(number.as_tuple().exponent) < -12:
        raise ValueError("not a decimal number of at most twelve digits on either side of the point")
    return number


def _kind(given: Any) -> str:
    """Plans and packages of the first release say no kind: they are about images."""
    return str((given.get("kind") if isinstance(given, dict) else getattr(given, "kind", None)) or "images")


ItemSchema = ImageSchema | VolumeSchema | SignalSchema | TextSchema
"""What is decoded, and may go through a pipeline."""
DataSchema = Annotated[
    Annotated[ImageSchema, Tag("images")]
    | Annotated[TableSchema, Tag("table")]
    | Annotated[VolumeSchema, Tag("volumes")]
    | Annotated[SignalSchema, Tag("signals")]
    | Annotated[TextSchema, Tag("texts")],
    Discriminator(_kind),
]


def dtype_of(data: DataSchema) -> str:
    """Of one sample's numbers, as safetensors names it: U8 of images that go through no pipeline."""
    return "U8" if data.kind == "images" and data.pipeline is None else "F32"


def sample_bytes(data: DataSchema) -> int:
    """Of one sample as a worker is given it, without its label and whose it is."""
    return prod(data.shape) * (1 if dtype_of(data) == "U8" else 4)


def pipeline_of(data: DataSchema) -> Pipeline | None:
    """What each hospital's node applies to its items under a schema; None where it states nothing."""
    return None if isinstance(data, TableSchema) else data.pipeline
