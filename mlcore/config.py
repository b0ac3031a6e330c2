"""Recipes: a TOML file, typed and closed to typos, plus `key=value` overrides from the command line.

Every mistake in file and overrides is reported in one go, each as `path:line: what; the fix`. A resolved recipe
written by `to_toml` reads back as itself, so a run can be trained again from the file in its folder.
"""

import hashlib
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mlcore import schedule, toml
from mlcore.errors import RecipeError
from mlcore.hints import did_you_mean, nearest, nearest_key, words_in

RECIPES = Path(__file__).parent / "recipes"
LIMIT_BYTES = 1 << 20  # a recipe is a page, not a book
COUNT_MAX = 10**9
MESSAGE_MAX = 400  # characters; a value may be a page long

Whole: TypeAlias = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Scalar: TypeAlias = bool | Whole | Annotated[float, Field(allow_inf_nan=False)] | str
Options: TypeAlias = dict[str, Scalar | list[Scalar]]
Count: TypeAlias = Annotated[int, Field(ge=0, le=COUNT_MAX)]
Positive: TypeAlias = Annotated[int, Field(ge=1, le=COUNT_MAX)]
Precision: TypeAlias = Literal["fp32", "bf16"]


class Closed(BaseModel):
    """Frozen, closed to unknown keys, and no value is converted ("3" is not 3)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Model(Closed):
    """A name of `mlcore.models.MODELS` and that network's own options."""

    name: str
    options: Options = {}


# What shards of photographs must say, and may say with these defaults.
SHARDS = "shards"
SHARD_NEEDS = ("train", "test", "side", "classes")
SHARD_OPTIONS: dict[str, Any] = {"colour_noise": 0.0, "broken": "refuse", "max_pixels": 1 << 26, "workers": 0}


class ShardData(Closed):
    """What only the dataset "shards" has: photographs in tar shards.

    `train`, `test`: a folder, a pattern or a list file, beginning at --data or MLCORE_DATA. A picture's class is the
    folder it lies in, or the number in its .cls (WebDataset's 000001.jpg and 000001.cls); where no test picture has
    one, the labels are withheld and the pictures are predicted all the same. `side`: pixels of the central square, to
    which a photograph's shorter side is made; `crop` is cut out of it. `classes`: how many there are; numbers go from
    0 to one less. `colour_noise`: the paper's sigma of noise along the colours' principal axes. `broken`: refuse a
    broken picture, or leave it out and count it; what is larger than `max_pixels` is broken. `workers`: decoding
    threads (0: one per core).
    """

    train: str | None = None
    test: str | None = None
    side: Annotated[int, Field(ge=1, le=4096)] | None = None
    classes: Positive | None = None
    colour_noise: float | None = Field(default=None, ge=0, le=10, allow_inf_nan=False)
    broken: Literal["refuse", "skip"] | None = None
    max_pixels: Positive | None = None
    workers: Annotated[int, Field(ge=0, le=1024)] | None = None


class Data(ShardData):
    """`validation` images are held out of the training split by seed; `limit` keeps so many of the rest (0: all).

    `shuffle_labels` is the control that deals the training labels out anew: nothing can be learnt then.
    `surrogate`: whether drawn digits may stand in when MNIST can't be had.
    `normalise`: by one mean and one deviation, by those of each channel, or by the mean image alone (bytes 0..255 less
    their mean). `crop`: pixels a side of what the network sees, at a place drawn for each image and epoch, and in the
    centre in evaluation (0: the whole image). `flip`: half of the training images mirrored. `views`: the test
    averages the softmax of so many windows of an image; ten are corners, centre and their mirror images.
    """

    dataset: Literal["mnist", "mnist-surrogate", "cifar10", "shards"] = "mnist"
    validation: Count = 0
    limit: Count = 0
    shuffle_labels: bool = False
    surrogate: bool = True
    normalise: Literal["scalar", "channel", "image"] = "scalar"
    crop: Count = 0
    flip: bool = False
    views: Literal["centre", "ten"] = "centre"

    @model_validator(mode="before")
    @classmethod
    def _with_shard_defaults(cls, given: Any) -> Any:
        photos = isinstance(given, dict) and given.get("dataset") == SHARDS
        return {**SHARD_OPTIONS, **given} if photos else given


# Each optimiser's own options with their defaults, beside `rate` and `weight_decay`, which all have.
OPTIMISER_OPTIONS: dict[str, dict[str, float]] = {
    "sgd": {"momentum": 0.9},
    "adam": {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8},
}


class LayerPace(Closed):
    """What one layer has of its own; what is left out is as in the rest of the network.

    rate: multiplies `optimiser.rate` for all of the layer, biases too; 0 leaves it as it began. bias_rate: multiplies
    it once more for biases. weight_decay, bias_decay: L2 coefficients.
    """

    rate: float = Field(default=1.0, ge=0, le=1e6, allow_inf_nan=False)
    bias_rate: float | None = Field(default=None, ge=0, le=1e6, allow_inf_nan=False)
    weight_decay: float | None = Field(default=None, ge=0, le=1e3, allow_inf_nan=False)
    bias_decay: float | None = Field(default=None, ge=0, le=1e3, allow_inf_nan=False)


class Optimiser(Closed):
    """A name of `mlcore.optim.OPTIMISERS`: the peak rate, the L2 coefficient on weights, its own options.

    bias_rate: how many times faster biases move (cuda-convnet: 2). bias_decay: their L2 coefficient. layers: what
    single layers have of their own, by the model's names for them. A bias is a parameter whose name ends in "bias".
    momentum belongs to sgd; beta1, beta2 (how much of the running means is kept) and epsilon to adam. What is left
    out takes the default; an option of the other optimiser is refused by `parse`.
    """

    name: Literal["sgd", "adam"] = "sgd"
    rate: float = Field(gt=0, le=1e3, allow_inf_nan=False)
    momentum: float | None = Field(default=None, ge=0, lt=1, allow_inf_nan=False)
    beta1: float | None = Field(default=None, ge=0, lt=1, allow_inf_nan=False)
    beta2: float | None = Field(default=None, ge=0, lt=1, allow_inf_nan=False)
    epsilon: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    weight_decay: float = Field(default=0.0, ge=0, le=1e3, allow_inf_nan=False)
    bias_rate: float = Field(default=1.0, ge=0, le=1e6, allow_inf_nan=False)
    bias_decay: float = Field(default=0.0, ge=0, le=1e3, allow_inf_nan=False)
    layers: dict[str, LayerPace] = {}

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, given: Any) -> Any:
        name = given.get("name", "sgd") if isinstance(given, dict) else None
        return {**OPTIMISER_OPTIONS[name], **given} if isinstance(name, str) and name in OPTIMISER_OPTIONS else given

    @property
    def options(self) -> dict[str, float]:
        """The named optimiser's own options."""
        return {name: getattr(self, name) for name in OPTIMISER_OPTIONS[self.name]}


class Schedule(Closed):
    """A name of `mlcore.schedule.SCHEDULES` and, beside it, its own options; it scales `optimiser.rate`."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: Options = Field(init=False)
    name: str = "constant"

    @property
    def options(self) -> Options:
        """The keys beside `name`."""
        return dict(self.__pydantic_extra__)


class Train(Closed):
    """`steps` caps what `epochs` would give; 0 steps evaluates the untrained network.

    The validation part is evaluated after every `eval_every` epochs; a checkpoint is written at the end of an
    epoch and whenever the last one is `checkpoint_every_s` seconds old. `stop_after`: so many evaluations running
    without a lower validation error end training (0: never). `stop_at_pct`: the first epoch whose training error, as
    it was met while training, is at most this ends it (0: never). `keep_best`: the test is made with the weights of the
    lowest validation error, which checkpoints then hold beside the last ones. `snapshots`: after each epoch, what the
    network says of every training image is written, for others to score.
    """

    epochs: Positive
    batch: Positive = 64
    steps: Count | None = None
    eval_every: Positive = 1
    checkpoint_every_s: float = Field(default=60.0, ge=0, allow_inf_nan=False)
    stop_after: Count = 0
    stop_at_pct: float = Field(default=0.0, ge=0, le=100, allow_inf_nan=False)
    keep_best: bool = False
    snapshots: bool = False


class Recipe(Closed):
    """Everything that decides a run, apart from the data's bytes and the code. `threads` 0: all there are. `precision`:
    bf16 halves the memory of activations and is about twice as fast where the processor multiplies it. `engine`:
    "torch" has PyTorch (extra `peers`) run network and updates, to compare with; all else stays ours."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")
    seed: int = Field(default=1, ge=0, lt=2**63)
    threads: int = Field(default=0, ge=0, le=1024)
    precision: Precision = "fp32"
    engine: Literal["torch"] | None = None
    model: Model
    data: Data = Data()
    optimiser: Optimiser
    schedule: Schedule = Schedule()
    train: Train

    @property
    def sha256(self) -> str:
        """Of the bytes of `to_toml`, as `sha256sum recipe.toml` gives it."""
        return hashlib.sha256(to_toml(self).encode()).hexdigest()


def load(source: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a path or of a shipped name ("lenet5_mnist"), with overrides such as "train.epochs=3".

    Raises RecipeError with a line per mistake.
    """
    path = find(source)
    return parse(_text_of(path), str(path), overrides)


def find(source: str) -> Path:
    """The file of a recipe given as a path or as a shipped name; RecipeError lists the shipped ones."""
    path = Path(source)
    if path.suffix == ".toml":
        return path
    shipped = {file.stem: file for file in sorted(RECIPES.glob("*.toml"))}
    if source in shipped:
        return shipped[source]
    hint = did_you_mean(nearest(source, list(shipped)))
    raise RecipeError(f"no recipe '{source}'", fix=f"{hint}give a .toml file or one of {', '.join(shipped)}")


def parse(text: str, place: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from TOML text; `place` names it in errors."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        line = re.search(r"at line (\d+)", str(error))
        at = line.group(1) if line else str(text.count("\n") + 1)
        raise RecipeError(f"not TOML: {error}", place=f"{place}:{at}", fix="correct the line") from error
    places, mistakes = _lines(text, place), []
    for override in overrides:
        mistakes += _apply(document, override, places)
    try:
        recipe = Recipe.model_validate(document)
        schedule.build(recipe.schedule.name, recipe.schedule.options)
        _demand_own_options(recipe.optimiser)
        _demand_a_crop(recipe.data)
        _demand_shards_alone(recipe.data)
    except ValidationError as error:
        mistakes += [_explain(item, places) for item in error.errors(include_url=False)]
    except RecipeError as error:
        mistakes.append(str(error.at(_where(error.place.split("."), places))))
    if mistakes:
        raise RecipeError("\n".join(dict.fromkeys(mistake[:MESSAGE_MAX] for mistake in mistakes)))
    return recipe


def to_toml(recipe: Recipe) -> str:
    """The resolved recipe as TOML: every value, defaults too, in a fixed order."""
    return toml.dumps(recipe.model_dump(exclude_none=True))


def _demand_own_options(optimiser: Optimiser) -> None:
    """RecipeError for an option of another optimiser than the named one."""
    for other, options in OPTIMISER_OPTIONS.items():
        for key in options.keys() - OPTIMISER_OPTIONS[optimiser.name].keys():
            if getattr(optimiser, key) is not None:
                raise RecipeError(
                    f"'{key}' is an option of {other}, not of {optimiser.name}",
                    place=f"optimiser.{key}",
                    fix=f"drop it; {optimiser.name} has {', '.join(OPTIMISER_OPTIONS[optimiser.name])}",
                )


def _demand_a_crop(data: Data) -> None:
    """RecipeError for ten views of whole images, which are only two."""
    if data.views == "ten" and not data.crop:
        fix = 'set data.crop, or views = "centre"'
        raise RecipeError("ten views need a crop to be cut at ten places", place="data.views", fix=fix)


def _demand_shards_alone(data: Data) -> None:
    """RecipeError for shards that are not told enough, or for options of shards with another dataset."""
    given = [key for key in (*SHARD_NEEDS, *SHARD_OPTIONS) if getattr(data, key) is not None]
    if data.dataset != SHARDS and given:
        fix = f'drop it, or set data.dataset = "{SHARDS}"'
        raise RecipeError(f"'{given[0]}' is an option of {SHARDS}", place=f"data.{given[0]}", fix=fix)
    lacking = [key for key in SHARD_NEEDS if key not in given]
    if data.dataset == SHARDS and lacking:
        raise RecipeError(f"shards need {', '.join(lacking)}", place="data.dataset", fix=f"add data.{lacking[0]}")


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            content = stream.read(LIMIT_BYTES + 1)
        if len(content) > LIMIT_BYTES:
            raise RecipeError(f"longer than {LIMIT_BYTES} bytes", place=str(path), fix="check that it is a recipe")
        return content.decode()
    except FileNotFoundError as error:
        hint = did_you_mean(nearest(path.stem, [file.stem for file in RECIPES.glob("*.toml")]))
        raise RecipeError(
            "no such file", place=str(path), fix=f"{hint}check the path, or give a shipped name"
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError("not UTF-8 text", place=str(path), fix="check that it is a recipe") from error
    except OSError as error:
        raise RecipeError(f"can't be read ({error.strerror})", place=str(path), fix="check its rights") from error


def _apply(document: dict[str, Any], override: str, places: dict[str, str]) -> list[str]:
    """Set one dotted key in the document; what is wrong with the override, if anything."""
    key, equals, text = override.partition("=")
    shown = f"override '{override[:60]}'"
    names = key.strip().split(".")
    if not equals or not all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in names):
        return [f"{shown}: not key=value; write for example train.epochs=3"]
    table = document
    for depth, name in enumerate(names[:-1], start=1):
        table = table.setdefault(name, {})
        places.setdefault(".".join(names[:depth]), shown)
        if not isinstance(table, dict):
            return [f"{shown}: '{'.'.join(names[:depth])}' is a value, not a section; drop the rest"]
    table[names[-1]] = _value(text.strip())
    places[key.strip()] = shown
    return []


def _value(text: str) -> Any:
    """TOML's reading of the text when it is one value, else the text itself: name=mine needs no quotes."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if set(parsed) == {"value"} else text


def _lines(text: str, place: str) -> dict[str, str]:
    """Where each dotted key stands, as `place:line`; good for the usual layout of one key a line."""
    places, section = {"": f"{place}:1"}, ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[+\s*([A-Za-z0-9_.\s-]+?)\s*\]", line):
            section = header.group(1)
            places.setdefault(section, f"{place}:{number}")
        elif key := re.match(r"\s*([A-Za-z0-9_.-]+)\s*=", line):
            places[f"{section}.{key.group(1)}".strip(".")] = f"{place}:{number}"
    return places


def _where(location: Sequence[str], places: dict[str, str]) -> str:
    """The place of the longest known beginning of a dotted key."""
    return next(places[key] for n in range(len(location), -1, -1) if (key := ".".join(location[:n])) in places)


def _explain(item: Mapping[str, Any], places: dict[str, str]) -> str:
    """One of pydantic's errors as `path:line: what; the fix`."""
    location = [str(part) for part in item["loc"]][: _depth(item["loc"])]
    dotted = ".".join(location)
    where = _where(location, places)
    if item["type"] == "missing":
        return f"{where}: '{dotted}' is missing; add it"
    if item["type"] == "extra_forbidden":
        keys = _all_keys(location)
        hint, known = did_you_mean(nearest_key(dotted, keys)), words_in(".".join(location[:-1]), keys)
        return f"{where}: unknown key '{dotted}'; {hint}known: {', '.join(known)}"
    return f"{where}: '{dotted}' is {_shown(item['input'])}; {item['msg'][0].lower()}{item['msg'][1:]}"


def _depth(location: Sequence[str | int]) -> int:
    """How much of a location is keys; what follows are pydantic's names of types."""
    return 4 if location[:2] == ("optimiser", "layers") else 3 if location[0] == "model" else 2


def _shown(value: Any) -> str:
    """A value, cut short; a hexadecimal integer can be too long for Python to print."""
    try:
        return repr(value)[:60]
    except ValueError:
        return "a very long integer"


def _all_keys(location: Sequence[str]) -> list[str]:
    """Every dotted key of a recipe, sections too, in the order of the records above; of the layers, the one there."""
    keys = list(Recipe.model_fields)
    for name, item in Recipe.model_fields.items():
        if isinstance(item.annotation, type) and issubclass(item.annotation, BaseModel):
            keys += [f"{name}.{key}" for key in item.annotation.model_fields]
    if len(location) == 4:
        keys += [f"{'.'.join(location[:3])}.{key}" for key in LayerPace.model_fields]
    return keys
