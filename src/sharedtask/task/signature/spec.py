"""A function's signature, annotations and sharing lists -> one frozen ``TaskSpec``.

Everything that can be known before the first call is decided and refused here, at the decorator's
line. The required types become checks once; a call only runs them.
"""

import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from inspect import Parameter, Signature
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, cast

from sharedtask.annotations import Made, Role
from sharedtask.errors import ArgumentError, DefinitionError, UnshareableError
from sharedtask.recipes import PerWorkerValue
from sharedtask.serialization.unshareable import cure_for_type, cure_for_value
from sharedtask.system.records import dataclass, field
from sharedtask.text import did_you_mean
from sharedtask.writing.locked.regions import Regions
from sharedtask.writing.reduced.operations import Reduction

from .hints import Hint, Names, Rule, read_hint
from .type_checks import Check, build_check

__all__ = ["Kind", "Lists", "TaskSpec", "build_spec", "refuse_unshareable"]

Kind: TypeAlias = Literal["function", "static", "class"]
# The decorator's lists: names of parameters by role, some with a rule.
Lists: TypeAlias = Mapping[str, Sequence[str] | Mapping[str, Any]]

_POSITIONAL = (
    Parameter.POSITIONAL_ONLY,
    Parameter.POSITIONAL_OR_KEYWORD,
    Parameter.VAR_POSITIONAL,
)
_VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
_ANNOTATED = re.compile(r"(?:typing\.)?Annotated\[(.+?), <(?:Role|Made)\.([A-Z_]+): '[a-z_]+'>\]")
_WORDS: Mapping[Role | Made, str] = {**{role: role.word for role in Role}, Made.RNG: "Rng"}
_WORDS_BY_NAME = {mark.name: word for mark, word in _WORDS.items()}


@dataclass(frozen=True, slots=True)
class Others:
    """The parameters of a function besides the item, if all of them can be given by name."""

    names: frozenset[str]
    required: frozenset[str]

    def are_in(self, kwargs: Mapping[str, Any]) -> bool:
        """Whether these keywords and an item are exactly the arguments of a call."""
        return self.required <= kwargs.keys() <= self.names


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """The facts about a task that are known before it is called.

    Attributes:
        name: The function's name for messages, "Model.score" for a method.
        signature: Its signature, ``self`` or ``cls`` included if the function takes one.
        item: Name of the parameter that takes the item.
        bound: Name of the parameter that takes the object of a method, None for a function.
        roles: Role of every shared parameter; a name may come through ``**kwargs``.
        accepts_kwargs: Whether the function has a ``**kwargs``.
        checks: Check of every shared parameter whose annotation has a type.
        rules: Declarations besides the roles: how items name their blocks, how tasks add up.
        generators: Names of the parameters that get a generator for each item.
        others: The parameters besides the item, None if Python's rules for them are not simple.
        writes: Whether tasks write into arrays of the caller.
        may_leave_out: Whether a value may be None: there is no array to write, or nothing to make.
    """

    name: str
    signature: Signature
    item: str
    bound: str | None
    roles: Mapping[str, Role]
    accepts_kwargs: bool
    checks: Mapping[str, Check]
    rules: Mapping[str, Rule]
    generators: tuple[str, ...]
    others: Others | None
    writes: bool = field(init=False)
    may_leave_out: bool = field(init=False)

    def __post_init__(self) -> None:
        roles = self.roles.values()
        object.__setattr__(self, "writes", any(role.writes for role in roles))
        object.__setattr__(self, "may_leave_out", self.writes or Role.PER_WORKER in roles)

    @property
    def shown(self) -> str:
        """The function with its signature, as written: ``score(x, m: Shared[dict])``."""
        return f"{self.name}{_ANNOTATED.sub(_role_of, str(self.signature))}"

    def on_object(self) -> "TaskSpec":
        """The same, called on an object, which the first parameter takes, whatever its name.

        Raises:
            ArgumentError: No other parameter takes the item, or the one that does is shared.
        """
        first, *rest = self.signature.parameters.values()
        if self.bound is not None or first.kind not in _POSITIONAL[:2]:
            return self
        item = next((p.name for p in rest if p.kind in _POSITIONAL), None)
        if item is None or item in self.roles:
            why = f"'{item}' is shared" if item else "no other takes the item"
            msg = (
                f"{self.name}() is taken from an object, which its first parameter '{first.name}'"
                f" gets, and {why}. It is {self.shown}. Call a first parameter that takes the"
                " object self; take a function that needs no object from the class."
            )
            raise ArgumentError(msg)
        return replace(self, bound=first.name, item=item, others=None)

    def regions(self, name: str) -> Regions:
        """The regions of a locked parameter's array that are locked together."""
        return cast("Regions", self.rules.get(name, Regions()))

    def refuse_options(self, options: Mapping[str, Any]) -> None:
        """Refuse options of this task that would have no effect.

        Raises:
            DefinitionError: A seed is given, and no parameter gets a generator.
        """
        if options.get("seed") is not None and not self.generators:
            msg = (
                f"{self.shown}: seed={options['seed']!r} has no parameter to act on. Annotate the"
                " one for the random numbers: rng: Rng."
            )
            raise DefinitionError(msg)

    def check_value(self, name: str, value: object) -> None:
        """Check the value of a shared parameter against its annotation, without its contents.

        The parameter's own default always fits, as in ``model: Shared[dict] = None``.

        Raises:
            ArgumentError: The value does not match the annotation.
        """
        check = self.checks.get(name)
        complaint = None if check is None else check.complaint(value)
        if complaint is not None and value is not self.signature.parameters[name].default:
            raise ArgumentError(f"{self.name}(): '{name}' {complaint}.")


def refuse_unshareable(spec_name: str, name: str, value: object) -> None:
    """Refuse a value that belongs to one process: a generator, lock, socket, open file and so on.

    Only the value itself is looked at, not what it contains.

    Raises:
        UnshareableError: The value can never be shared.
    """
    cure = cure_for_value(value)
    if cure is not None:
        kind = type(value).__qualname__
        raise UnshareableError(f"{spec_name}(): '{name}' is a {kind}, which is no value: {cure}.")


def build_spec(
    function: Callable[..., Any],
    *,
    kind: Kind = "function",
    **lists: Sequence[str] | Mapping[str, Any],
) -> TaskSpec:
    """Read and check the function of a task.

    Args:
        function: The function itself, taken out of ``staticmethod`` or ``classmethod``.
        kind: The object it was taken from; whether a "function" is a method follows from its
            qualified name and from ``self`` or ``cls``.
        **lists: Names of parameters by role, as the decorator's keywords give them; those that are
            reduced may come with their operation.

    Raises:
        DefinitionError: The function cannot be a task, or a parameter cannot be shared as asked.
    """
    _refuse_wrong_targets(function)
    draft = _Draft(function, kind)
    listed = draft.listed_roles({Role(word): names for word, names in lists.items()})
    roles = draft.all_roles(listed)
    for name, role in roles.items():
        draft.refuse_role_of(name, role)
    generators = draft.generators(roles)
    return TaskSpec(
        name=draft.name,
        signature=draft.signature,
        item=draft.item,
        bound=draft.bound,
        roles=MappingProxyType(roles),
        accepts_kwargs=draft.accepts_kwargs,
        checks=MappingProxyType(draft.checks(roles)),
        rules=MappingProxyType(draft.rules(lists.get(Role.REDUCED.value, ()))),
        generators=generators,
        others=None if draft.bound or generators else _others(draft.signature),
    )


def _others(signature: Signature) -> Others | None:
    first, *rest = signature.parameters.values()
    if first.kind is Parameter.VAR_POSITIONAL or not {p.kind for p in rest} <= _BY_NAME:
        return None
    required = frozenset(p.name for p in rest if p.default is Parameter.empty)
    return Others(frozenset(p.name for p in rest), required)


_BY_NAME = {Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY}


# --- targets that cannot be a task ---------------------------------------------------------------


def _refuse_wrong_targets(function: object) -> None:
    name = name_of(function)
    if isinstance(function, type):
        raise DefinitionError(f"{name} is a class; decorate a function that uses it.")
    if not callable(function):
        raise DefinitionError(
            f"only a function can be a task, got {_short(function)}.{_hint_at_calls(function)}"
        )
    for code in (function, getattr(function, "__call__", None)):  # noqa: B004 - its code is read
        for refuses, what in _CODE_REFUSALS:
            if refuses(code):
                raise DefinitionError(f"{name}() {what}.")


def _hint_at_calls(given: object) -> str:
    """Where to go with ``parallel(f(x) for x in items)``, as joblib's ``Parallel`` is called."""
    if not isinstance(given, Iterable) or isinstance(given, str):
        return ""
    return " Make a task of the function, task = parallel(f), and map it: task.map(items)."


_CODE_REFUSALS: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (
        inspect.iscoroutinefunction,
        "is an async def, which would run in another process's event loop; use a plain def",
    ),
    (
        inspect.isasyncgenfunction,
        "is an async generator, and its state stays in one process; return a list from a plain def",
    ),
    (
        inspect.isgeneratorfunction,
        "is a generator function, and its state stays in one process; return a list instead",
    ),
)


def name_of(function: object) -> str:
    """Return a function's name for messages, without the functions around its definition."""
    if isinstance(function, functools.partial):
        return name_of(function.func)
    name = getattr(function, "__qualname__", None) or getattr(function, "__name__", None)
    return str(name or type(function).__qualname__).rpartition("<locals>.")[2]


def _signature(function: Callable[..., Any], name: str) -> Signature:
    try:
        return inspect.signature(function)
    except (ValueError, TypeError):
        message = f"{name}() has no signature to read; call it from a def of your own."
    raise DefinitionError(message)


def _short(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


# --- one function being read ---------------------------------------------------------------------


class _Draft:
    """Builds a ``TaskSpec`` from a function; each method decides one thing or refuses it."""

    def __init__(self, function: Callable[..., Any], kind: Kind) -> None:
        self.name = name_of(function)
        self.signature = _signature(function, self.name)
        self.parameters = self.signature.parameters
        self.function = function
        self.bound = self._find_bound(kind)
        self.item = self._find_item()
        self.accepts_kwargs = any(p.kind is p.VAR_KEYWORD for p in self.parameters.values())
        self.hints = self._read_hints()

    def error(self, text: str) -> DefinitionError:
        """Make the error with the signature and ``text``."""
        bare = [
            parameter.replace(annotation=Parameter.empty, default=Parameter.empty)
            for parameter in self.parameters.values()
        ]
        # A parameter without default may not follow one that has it, which may occur here.
        shown = Signature(bare)
        return DefinitionError(f"{self.name}{shown}: {text}")

    def _positional(self) -> list[str]:
        return [name for name, p in self.parameters.items() if p.kind in _POSITIONAL]

    def _find_bound(self, kind: Kind) -> str | None:
        first = next(iter(self._positional()), None)
        if kind == "class":
            return first
        is_method = kind == "function" and _in_class_body(self.function)
        return first if is_method and first in {"self", "cls"} else None

    def _find_item(self) -> str:
        names = [name for name in self._positional() if name != self.bound]
        if not names:
            raise self.error("has no positional parameter to take the item; add one, as in (item).")
        return names[0]

    # --- roles ---

    def _read_hints(self) -> dict[str, Hint]:
        names = Names(_plain_function(self.function))
        hints = {
            name: self._read(name, parameter.annotation, names)
            for name, parameter in self.parameters.items()
            if parameter.annotation is not Parameter.empty
        }
        returned = self.signature.return_annotation
        if returned is not Signature.empty and _is_marked(self._read("return", returned, names)):
            raise self.error(
                f"'-> {_annotation_text(returned)}' marks the result, and only parameters are"
                " shared; drop the mark."
            )
        return hints

    def _read(self, name: str, annotation: object, names: Names) -> Hint:
        try:
            return read_hint(annotation, names)
        except Exception as error:  # noqa: BLE001 - the text is the user's code and may raise anything
            if not any(word in str(annotation) for word in _WORDS.values()):
                return Hint()
            reason = f"{type(error).__name__}: {error}"
        raise self.error(f"the annotation {annotation!r} of '{name}' cannot be read ({reason}).")

    def listed_roles(self, lists: Mapping[Role, Iterable[str]]) -> dict[str, Role]:
        """Return the roles that the decorator's lists give, each name known and given once."""
        roles: dict[str, Role] = {}
        for role, given in lists.items():
            names = self._names_in(role, given)
            for name in names:
                self._refuse_unknown(role, names, name)
                if name in roles and roles[name] is role:
                    raise self.error(f"{role.value}= names '{name}' twice; name it once.")
                self._refuse_two_roles(name, role, roles.get(name, role))
                roles[name] = role
        return roles

    def _names_in(self, role: Role, given: object) -> list[str]:
        if isinstance(given, str):
            raise self.error(
                f"{role.value}={given!r} is one text, and a list of names is needed:"
                f" {role.value}=[{given!r}]."
            )
        names = list(given) if isinstance(given, Iterable) else [given]
        if not isinstance(given, Iterable) or not all(isinstance(name, str) for name in names):
            raise self.error(f"{role.value}={_short(given)} must be a list of parameter names.")
        return cast("list[str]", names)

    def _refuse_unknown(self, role: Role, names: list[str], name: str) -> None:
        if name in self.parameters or (self.accepts_kwargs and name.isidentifier()):
            return
        hint = did_you_mean(name, self._could_be_shared())
        which = "" if len(names) == 1 else f"'{name}' in "
        raise self.error(f"{which}{role.value}={names!r} names no parameter.{hint}")

    def _could_be_shared(self) -> Iterator[str]:
        for name, parameter in self.parameters.items():
            if name != self.item and parameter.kind not in _VARIADIC:
                yield name

    def all_roles(self, listed: Mapping[str, Role]) -> dict[str, Role]:
        """Return the roles from lists and annotations together, in the order of the signature."""
        roles: dict[str, Role] = {}
        for name, hint in self.hints.items():
            if hint.nested:
                raise self.error(self._nested_text(name, hint))
            for role in sorted(hint.roles, key=lambda role: role.value):
                self._refuse_two_roles(name, role, roles.get(name, listed.get(name, role)))
                roles[name] = role
        both = {**listed, **roles}
        known = {name: both.pop(name) for name in self.parameters if name in both}
        return {**known, **both}

    def _nested_text(self, name: str, hint: Hint) -> str:
        word = _WORDS[min(hint.nested, key=lambda role: role.value)]
        return f"'{name}' has {word} inside other brackets; it goes outside: {word}[list[...]]."

    def _refuse_two_roles(self, name: str, role: Role, other: Role) -> None:
        if role is not other:
            first, second = sorted((_WORDS[role], _WORDS[other]))
            raise self.error(f"'{name}' is both {first} and {second}; choose one.")

    def refuse_role_of(self, name: str, role: Role) -> None:
        """Refuse a role on a parameter whose value cannot be passed as a shared keyword."""
        parameter = self.parameters.get(name)
        if name == self.item:
            raise self.error(f"'{name}' takes the item, which differs in each call; share another.")
        if name == self.bound == "self" and role is Role.PER_WORKER:
            raise self.error("'self' is what the method is called on; give PerWorker a parameter.")
        if parameter is None or name == self.bound == "self":
            return
        if name == self.bound:
            raise self.error(f"'{name}' is the class, and a class is found by name; share a value.")
        if parameter.kind in _VARIADIC:
            stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**"
            raise self.error(f"'{stars}{name}' is many values; mark each by name in shared=[...].")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise self.error(f"'{name}' is positional-only, and shared values are given by name.")
        if name in _prebound(self.function):
            raise self.error(f"'{name}' is fixed by functools.partial; leave it out there.")
        if role is Role.PER_WORKER:
            if isinstance(parameter.default, PerWorkerValue):
                raise self.error(
                    f"'{name}' has {parameter.default!r} as default; pass it in calls."
                )
        else:
            self._refuse_type_of(name)

    def _refuse_type_of(self, name: str) -> None:
        hint = self.hints.get(name)
        for choice in hint.choices if hint else ():
            cure = cure_for_type(choice.type_)
            if cure is not None:
                text = _annotation_text(choice.type_)
                raise self.error(f"'{name}' is {text}, which belongs to one process: {cure}.")

    # --- values made for each item ---

    def generators(self, roles: Mapping[str, Role]) -> tuple[str, ...]:
        """Return the names of the parameters that get a generator for each item."""
        names = tuple(name for name, hint in self.hints.items() if hint.made)
        for name in names:
            if name in roles:
                raise self.error(f"'{name}' is both Rng and {_WORDS[roles[name]]}; choose one.")
            self._refuse_made(name, self.parameters[name])
        return names

    def _refuse_made(self, name: str, parameter: Parameter) -> None:
        """Refuse a parameter to which a made argument cannot be passed by name."""
        if name == self.item:
            raise self.error(f"'{name}' takes the item; add a parameter for the Rng behind it.")
        if name == self.bound:
            raise self.error(f"'{name}' is what the method is called on; add a parameter for Rng.")
        if parameter.kind in _VARIADIC or parameter.kind is parameter.POSITIONAL_ONLY:
            raise self.error(f"'{name}' is Rng and must be a single parameter with a name.")
        if name in _prebound(self.function):
            raise self.error(f"'{name}' is fixed by functools.partial; leave it out there.")
        rest = next((p.name for p in self.parameters.values() if p.kind is p.VAR_POSITIONAL), None)
        if rest is not None and parameter.kind is not parameter.KEYWORD_ONLY:
            raise self.error(f"'{name}' is Rng and comes before *{rest}; put it after that.")

    # --- checks ---

    def rules(self, reduced: Iterable[str] | Mapping[str, Any]) -> dict[str, Rule]:
        """Return how items name their blocks and how tasks add up, if that is declared."""
        annotated = {name: hint.rule for name, hint in self.hints.items() if hint.rule is not None}
        given = reduced if isinstance(reduced, Mapping) else {}
        for name in given:
            if name in annotated:
                raise self.error(
                    f"how '{name}' is reduced is given in its annotation and in reduced=;"
                    " give it once."
                )
        listed = {
            name: op if isinstance(op, Reduction) else Reduction(op) for name, op in given.items()
        }
        return {**annotated, **listed}

    def checks(self, roles: Iterable[str]) -> dict[str, Check]:
        """Build the checks of the shared parameters that are annotated."""
        built = {name: self._check(name) for name in roles if name in self.hints}
        return {name: check for name, check in built.items() if check is not None}

    def _check(self, name: str) -> Check | None:
        try:
            return build_check(self.hints[name].choices)
        except Exception as error:  # noqa: BLE001 - metadata is the user's code and may raise anything
            reason = str(error).splitlines()[0]
        raise self.error(f"the metadata of '{name}' makes no check: {reason}")


def _is_marked(hint: Hint) -> bool:
    return bool(hint.roles) or hint.made


def _in_class_body(function: Callable[..., Any]) -> bool:
    if isinstance(function, functools.partial | types.MethodType):
        return False
    parent, _, _ = getattr(function, "__qualname__", "").rpartition(".")
    return bool(parent) and not parent.endswith("<locals>")


def _plain_function(function: Any) -> object:
    """Return the function whose globals and closure the annotations use."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    if not hasattr(function, "__code__"):
        function = type(function).__call__
    return getattr(function, "__func__", function)


def _prebound(function: object) -> Mapping[str, Any]:
    names: dict[str, Any] = {}
    while isinstance(function, functools.partial):
        names |= function.keywords
        function = function.func
    return names


def _role_of(found: re.Match[str]) -> str:
    word = _WORDS_BY_NAME[found[2]]
    if word == _WORDS[Made.RNG]:
        return word
    return word if found[1] == "~T" else f"{word}[{found[1]}]"  # bare, without brackets


def _annotation_text(annotation: object) -> str:
    if isinstance(annotation, str):
        return annotation
    name: str | None = getattr(annotation, "__qualname__", None)
    if name and typing.get_origin(annotation) is None:
        return name
    return str(annotation).replace("typing.", "").replace("collections.abc.", "")
