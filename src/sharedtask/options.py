"""The options of a run: allowed values, and precedence of settings.

``Options`` is a plain frozen dataclass and its rules are pydantic-core schemas. A
``pydantic.BaseModel`` gives the same checks, but building the first one imports 60 modules and
takes longer than the rest of this package together.
"""

import contextlib
import dataclasses
import enum
import functools
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from numbers import Integral
from types import TracebackType
from typing import Any, Literal, TypeAlias, TypedDict, Unpack, cast

from pydantic_core import SchemaValidator, ValidationError, core_schema

from sharedtask.errors import OptionsError
from sharedtask.habits import OTHER_BACKENDS, OTHER_SPELLINGS
from sharedtask.recipes import Recipe
from sharedtask.system.records import dataclass
from sharedtask.system.tracebacks import shortened
from sharedtask.text import did_you_mean

__all__ = [
    "OPTION_NAMES",
    "VARIABLES",
    "Defaults",
    "Options",
    "OptionsDict",
    "check_options",
    "defaults",
    "resolve",
]

Backend: TypeAlias = Literal["auto", "process", "thread", "serial", "ray", "loky"]
Verify: TypeAlias = Literal["content", "compare", "identity"]
Captured: TypeAlias = Literal["share", "copy"]
Strict: TypeAlias = Literal["auto"] | bool
Initializer: TypeAlias = (
    Callable[[], object] | tuple[Callable[..., object], tuple[Any, ...] | list[Any]]
)
Items: TypeAlias = tuple[tuple[str, Any], ...]

MAX_WORKERS = 1000


class OptionsDict(TypedDict, total=False):
    """The options as keyword arguments, for ``Unpack``."""

    backend: Backend
    workers: int | None
    chunksize: int | Literal["auto"]
    buffersize: int | None
    progress: bool
    desc: str | None
    timeout: float | None
    retries: int
    retry_on: type[Exception] | tuple[type[Exception], ...] | list[type[Exception]]
    return_exceptions: bool
    verify: Verify
    captured: Captured
    strict: Strict
    journal: str | os.PathLike[str] | None
    seed: int | Sequence[int] | None
    memory_limit: int | str | None
    tasks_per_worker: int | None
    logs: bool
    initializer: Initializer | None
    ray_options: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Options:
    """Every option of one run, after all sources were merged.

    Attributes:
        backend: Where tasks run; "auto" is "ray" if the program has initialised Ray, "thread"
            without a GIL or if there are no worker processes, else "process". Without fork,
            "process" uses the workers of "loky".
        workers: How many tasks run at once, 1 to 1000; None: the CPUs this process may use.
        chunksize: Items that are sent together, at least 1, or "auto".
        buffersize: Items read from the input ahead of the results; None: the run decides.
        progress: Whether a bar is shown.
        desc: Text before the bar; a text without progress=True turns the bar on.
        timeout: Seconds one task may take, above 0; None: no limit.
        retries: How often a failed task is run again, 0 or more.
        retry_on: The exceptions after which it is run again.
        return_exceptions: Whether a failed item's result is its exception.
        verify: "content" looks for changes in shared values; "compare" does so without the
            kernel's tracking, for memory that hardware writes; "identity" assumes there are none.
        captured: "share" puts each large unmarked array (in the function's closure, in ``self``, in
            arguments) into shared memory once; "copy" pickles them with their containers.
        strict: The reaction to a task that changes keys, items or attributes of a shared value.
            "auto" warns if a check of negligible cost detects it; True raises
            ``ChangedValueError``, and to detect changes pickles everything except arrays again
            after each chunk; False disables the checks.
        journal: File that records the results of a map as items finish, so that
            the same call finds them there after an interruption; None: no file.
        seed: Seed of the generators of parameters annotated ``Rng``: one or more whole
            numbers from 0 up, of any size; None: a new seed for every call.
        memory_limit: Bytes of private memory that a worker process may use, or
            a string such as "512MB" or "2GiB". None: no limit.
        tasks_per_worker: Items after which a worker process is replaced; None: never.
        logs: Whether the caller handles log records and warnings of tasks.
        initializer: Called once in each worker before its first item of the task: a callable
            without arguments, or ``(callable, args)``. Held as a ``Recipe``.
        ray_options: With Ray, the resources that every task needs, under the names of
            ``ray.remote``: ``{"num_gpus": 0.25, "memory": 2e9}``.

    Raises:
        OptionsError: A value is outside what its option allows.
    """

    backend: Backend = "auto"
    workers: int | None = None
    chunksize: int | Literal["auto"] = "auto"
    buffersize: int | None = None
    progress: bool = False
    desc: str | None = None
    timeout: float | None = None
    retries: int = 0
    retry_on: tuple[type[Exception], ...] = (Exception,)
    return_exceptions: bool = False
    verify: Verify = "content"
    captured: Captured = "share"
    strict: Strict = "auto"
    journal: str | None = None
    seed: int | tuple[int, ...] | None = None
    memory_limit: int | None = None
    tasks_per_worker: int | None = None
    logs: bool = True
    initializer: Recipe | None = None
    ray_options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in OPTION_NAMES}
        for name, value in check_options(given, "Options()").items():
            object.__setattr__(self, name, value)

    @property
    def shows_progress(self) -> bool:
        """Whether a bar is shown: asked for, or implied by a description."""
        return self.progress or self.desc is not None


OPTION_NAMES: tuple[str, ...] = tuple(field.name for field in dataclasses.fields(Options))


# --- what each option allows -----------------------------------------------------------------


def _plain_int(value: object) -> object:
    # numpy's integers count; True would pass for 1 and is a mistake in every option that counts.
    if isinstance(value, bool) or not isinstance(value, Integral):
        return value
    return int(value)


def _as_tuple(value: object) -> object:
    if isinstance(value, type):
        return (value,)
    return tuple(value) if isinstance(value, list | set | frozenset) else value


def _count(at_least: int, at_most: int | None = None) -> core_schema.CoreSchema:
    number = core_schema.int_schema(ge=at_least, le=at_most, strict=True)
    return core_schema.no_info_before_validator_function(_plain_int, number)


def _seed() -> core_schema.CoreSchema:
    many = core_schema.tuple_variable_schema(_count(0), min_length=1, strict=True)
    several = core_schema.no_info_before_validator_function(_as_tuple, many)
    return core_schema.union_schema([_count(0), several])


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", re.IGNORECASE)
_POWERS = ("", "k", "m", "g", "t")


def _as_bytes(value: object) -> object:
    """Read "512MB", "2 GiB"; other values are returned unchanged."""
    found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        return value
    number, unit = found[1], found[2].lower()
    base = 1024 if unit.endswith("i") else 1000
    power = unit.removesuffix("i")
    if not power and unit:
        return value
    return int(float(number) * base ** _POWERS.index(power))


def _size() -> core_schema.CoreSchema:
    return core_schema.no_info_before_validator_function(_as_bytes, _count(1))


def _exception_classes() -> core_schema.CoreSchema:
    one = core_schema.is_subclass_schema(Exception)
    many = core_schema.tuple_variable_schema(one, min_length=1, strict=True)
    return core_schema.no_info_before_validator_function(_as_tuple, many)


def _file_path() -> core_schema.CoreSchema:
    """A path as a string, which can be part of a key; a path of bytes is refused."""

    def as_text(value: object) -> object:
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    path = core_schema.str_schema(min_length=1, strict=True, pattern=r"^[^\x00]+$")
    return core_schema.no_info_before_validator_function(as_text, path)


def _initializer() -> core_schema.CoreSchema:
    def as_recipe(value: object) -> object:
        if isinstance(value, Recipe):
            return value
        function, args = value if isinstance(value, tuple) and len(value) == 2 else (value, ())
        if not callable(function) or not isinstance(args, tuple | list):
            msg = "no initializer"
            raise ValueError(msg)  # noqa: TRY004  pydantic takes no TypeError for a refusal
        return Recipe(function, tuple(args))

    return core_schema.no_info_plain_validator_function(as_recipe)


class RayOptions(dict[str, Any]):
    """Options for Ray's tasks, hashable as part of a key."""

    # Not changed after it was checked.
    def __hash__(self) -> int:  # type: ignore[override] # pyright: ignore[reportIncompatibleVariableOverride]
        return hash(tuple(self))


_AMOUNT = core_schema.float_schema(ge=0, allow_inf_nan=False, strict=True)
# Names and meanings: Ray's documentation of ``ray.remote``. Of the rest, ``retries`` replaces its
# max_retries and retry_exceptions, and options about results are decided here.
_RAY_SCHEMAS: dict[str, core_schema.CoreSchema] = {
    "num_cpus": _AMOUNT,
    "num_gpus": _AMOUNT,
    "memory": _AMOUNT,
    "resources": core_schema.dict_schema(core_schema.str_schema(strict=True), _AMOUNT),
    "accelerator_type": core_schema.str_schema(strict=True),
    "label_selector": core_schema.dict_schema(),
    "fallback_strategy": core_schema.list_schema(),
    "scheduling_strategy": core_schema.any_schema(),
    "runtime_env": core_schema.any_schema(),
    "name": core_schema.str_schema(strict=True),
    "enable_task_events": core_schema.bool_schema(strict=True),
}
_RAY_REFUSED: dict[str, str] = {
    "max_retries": "Use retries= instead, outside of ray_options.",
    "retry_exceptions": "Use retry_on= instead, outside of ray_options.",
    "num_returns": "A task returns one value for each item.",
    "max_concurrency": "Use workers= instead, outside of ray_options.",
    "object_store_memory": "Ray takes it at its start: ray.init(object_store_memory=...).",
    "max_calls": "Workers are kept, with their decoded shared values.",
    **dict.fromkeys(
        (
            "placement_group",
            "placement_group_bundle_index",
            "placement_group_capture_child_tasks",
        ),
        "Say scheduling_strategy=PlacementGroupSchedulingStrategy(...) in it.",
    ),
}


def _ray_options() -> core_schema.CoreSchema:
    fields = {
        name: core_schema.typed_dict_field(schema, required=False)
        for name, schema in _RAY_SCHEMAS.items()
    }
    known = core_schema.typed_dict_schema(fields, extra_behavior="forbid")
    return core_schema.no_info_after_validator_function(RayOptions, known)


class _Reads(enum.Enum):
    """How the text of an environment variable is read."""

    WORD = enum.auto()
    TEXT = enum.auto()
    SWITCH = enum.auto()
    INTEGER = enum.auto()
    NUMBER = enum.auto()
    NEVER = enum.auto()  # a class cannot be named without importing its module


@dataclass(frozen=True, slots=True)
class _Rule:
    """What an option allows: as a schema, in words, and as the text of a variable."""

    schema: core_schema.CoreSchema
    allowed: str
    reads: _Reads
    words: tuple[str, ...] = ()
    is_nullable: bool = False


def _one_of(*words: str) -> _Rule:
    *most, last = map(repr, words)
    allowed = f"{', '.join(most)} or {last}"
    return _Rule(core_schema.literal_schema(list(words)), allowed, _Reads.WORD, words)


def _switch() -> _Rule:
    return _Rule(core_schema.bool_schema(strict=True), "True or False", _Reads.SWITCH)


def _optional(schema: core_schema.CoreSchema, allowed: str, reads: _Reads) -> _Rule:
    schema = core_schema.nullable_schema(schema)
    return _Rule(schema, allowed, reads, is_nullable=reads is not _Reads.NEVER)


def _auto_or(schema: core_schema.CoreSchema) -> core_schema.CoreSchema:
    return core_schema.union_schema([core_schema.literal_schema(["auto"]), schema])


_RULES: dict[str, _Rule] = {
    "backend": _one_of("auto", "process", "thread", "serial", "ray", "loky"),
    "workers": _optional(
        _count(1, MAX_WORKERS),
        f"a whole number from 1 to {MAX_WORKERS}, or None for all CPUs",
        _Reads.INTEGER,
    ),
    "chunksize": _Rule(
        _auto_or(_count(1)),
        "a whole number from 1 up, or 'auto'",
        _Reads.INTEGER,
    ),
    "buffersize": _optional(_count(1), "a whole number from 1 up, or None", _Reads.INTEGER),
    "progress": _switch(),
    "desc": _optional(core_schema.str_schema(strict=True), "a text or None", _Reads.TEXT),
    "timeout": _optional(
        core_schema.float_schema(gt=0, allow_inf_nan=False, strict=True),
        "a number of seconds above 0, or None for no limit",
        _Reads.NUMBER,
    ),
    "retries": _Rule(_count(0), "a whole number from 0 up", _Reads.INTEGER),
    "retry_on": _Rule(_exception_classes(), "an Exception class or a tuple of them", _Reads.NEVER),
    "return_exceptions": _switch(),
    "verify": _one_of("content", "compare", "identity"),
    "captured": _one_of("share", "copy"),
    "strict": _Rule(
        _auto_or(core_schema.bool_schema(strict=True)), "'auto', True or False", _Reads.SWITCH
    ),
    "journal": _optional(_file_path(), "the path of a file, or None", _Reads.TEXT),
    "seed": _optional(
        _seed(),
        "a whole number from 0 up, several of them, or None for fresh random numbers",
        _Reads.INTEGER,
    ),
    "memory_limit": _optional(
        _size(),
        "a number of bytes above 0, a text such as '512MB' or '2GiB', or None",
        _Reads.WORD,
    ),
    "tasks_per_worker": _optional(_count(1), "a whole number from 1 up, or None", _Reads.INTEGER),
    "logs": _switch(),
    "initializer": _optional(
        _initializer(),
        "a callable without arguments, a pair (callable, args), or None",
        _Reads.NEVER,
    ),
    "ray_options": _optional(
        _ray_options(), "a dict of options of Ray's tasks, or None", _Reads.NEVER
    ),
}

_VALIDATOR = SchemaValidator(
    core_schema.typed_dict_schema(
        {
            name: core_schema.typed_dict_field(rule.schema, required=False)
            for name, rule in _RULES.items()
        }
    )
)


def check_options(
    options: Mapping[str, object], where: str, beside: Iterable[str] = ()
) -> dict[str, Any]:
    """Check the options that are given and return them in the form ``Options`` holds.

    Args:
        options: Names and values; options that are not given are not added.
        where: Start of an error text, such as "score()" or "defaults()".
        beside: Other keywords of the same call, for one that is misspelt.

    Raises:
        OptionsError: A name is unknown or a value is outside what its option allows.
    """
    for name in options:
        if name not in _RULES:
            raise OptionsError(_unknown_option(name, where, beside))
    try:
        return cast("dict[str, Any]", _VALIDATOR.validate_python(dict(options)))
    except ValidationError as error:
        place = error.errors(include_url=False, include_context=False)[0]["loc"]
    name = str(place[0])
    if name == "ray_options" and len(place) > 1:
        raise OptionsError(_bad_ray_option(str(place[1]), options[name], where))
    raise OptionsError(_bad_value(name, options[name], where))


def _bad_ray_option(name: str, given: Any, where: str) -> str:
    if name in _RAY_SCHEMAS:
        return f"{where}: Ray cannot take ray_options={{{name!r}: {_short(given[name])}}}."
    hint = _RAY_REFUSED.get(name) or did_you_mean(name, _RAY_SCHEMAS).lstrip()
    hint = hint or f"There are {', '.join(_RAY_SCHEMAS)}."
    return f"{where}: ray_options has no {name!r}. {hint}"


def _unknown_option(name: str, where: str, beside: Iterable[str]) -> str:
    if name in OTHER_SPELLINGS:
        hint = f" Did you mean {OTHER_SPELLINGS[name]}=?"
    else:
        hint = did_you_mean(name, (*OPTION_NAMES, *beside), "{}=")
    hint = hint or f" The options are {', '.join(OPTION_NAMES)}."
    return f"{where}: there is no option {name}=.{hint}"


def _bad_value(name: str, value: object, where: str) -> str:
    rule = _RULES[name]
    word = OTHER_BACKENDS.get(value, value) if isinstance(value, str) else None
    hint = did_you_mean(word, rule.words) if word else ""
    return f"{where}: {name} must be {rule.allowed}, got {_short(value)}.{hint}"


def _short(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


# --- defaults() ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Layer:
    """One entered block: its options merged over those of the blocks around it."""

    items: Items
    outer: "_Layer | None"


_layer: ContextVar[_Layer | None] = ContextVar("sharedtask_defaults", default=None)


class Defaults:
    """A block of code in which some options have other defaults; made by ``defaults``."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = dict(options)

    def __enter__(self) -> None:
        outer = _layer.get()
        merged = {**dict(outer.items if outer else ()), **self._options}
        _layer.set(_Layer(tuple(merged.items()), outer))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Not ContextVar.reset: its token would have to be kept here, and one block object may be
        # entered by several threads and several times at once.
        layer = _layer.get()
        _layer.set(layer.outer if layer else None)


@shortened
def defaults(**options: Unpack[OptionsDict]) -> Defaults:
    """Return a context manager inside which these options apply, unless a task sets them.

    It applies to the current thread or asyncio task; inner blocks override outer ones.

    Raises:
        OptionsError: A name is unknown or a value is outside what its option allows.
    """
    return Defaults(check_options(options, "defaults()"))


# --- SHAREDTASK_<OPTION> ---------------------------------------------------------------------

_SWITCH_WORDS = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}
_FROM_ENVIRONMENT = tuple(n for n in OPTION_NAMES if _RULES[n].reads is not _Reads.NEVER)
VARIABLES = tuple(f"SHAREDTASK_{name.upper()}" for name in _FROM_ENVIRONMENT)
_RAW_VARIABLES = tuple(map(getattr(os.environ, "encodekey", str), VARIABLES))


def _environment() -> tuple[bytes | str | None, ...]:
    """Return the variables' raw values, in the order of ``_FROM_ENVIRONMENT``.

    This is read on every call, and ``os.environ.get`` costs 1.3 microseconds for a name that is
    not set. The dictionary below it costs a twentieth; a test's own mapping has none.
    """
    raw = getattr(os.environ, "_data", None)
    if raw is None:
        return tuple(map(os.environ.get, VARIABLES))
    return tuple(map(raw.get, _RAW_VARIABLES))


def _environment_options(raw: Iterable[bytes | str | None]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, variable, value in zip(_FROM_ENVIRONMENT, VARIABLES, raw, strict=True):
        text = os.fsdecode(value).strip() if value is not None else ""
        if text:
            options |= check_options({name: _parse(name, text)}, variable)
    return options


def _parse(name: str, text: str) -> object:
    """Read a variable's text; other text is returned unchanged, and refused by the check."""
    rule, word = _RULES[name], text.lower()
    if word == "none" and rule.is_nullable:
        return None
    if rule.reads is _Reads.SWITCH:
        return _SWITCH_WORDS.get(word, text)
    with contextlib.suppress(ValueError):
        if rule.reads is _Reads.INTEGER:
            return int(text)
        if rule.reads is _Reads.NUMBER:
            return float(text)
    return text if rule.reads is _Reads.TEXT else word


# --- precedence of settings --------------------------------------------------------------------


def resolve(explicit: Mapping[str, Any]) -> Options:
    """Return the options of a call made now.

    Args:
        explicit: What the task itself sets, as returned by ``check_options``.

    Returns:
        For every option the nearest setting: the task's own, the innermost ``defaults`` block,
        the variable ``SHAREDTASK_<OPTION>``, the built-in default. Equal settings return the same
        object.

    Raises:
        OptionsError: A variable holds a value outside what its option allows.
    """
    layer = _layer.get()
    return _resolve(tuple(explicit.items()), layer.items if layer else (), _environment())


@functools.lru_cache(maxsize=256)
def _resolve(explicit: Items, block: Items, raw: tuple[bytes | str | None, ...]) -> Options:
    return Options(**{**_environment_options(raw), **dict(block), **dict(explicit)})
