"""What runs inside a sandbox: a program, an answer whose functions are called from outside, or the tests that call them.

The sandboxed interpreter gets this file compiled, and imports nothing but the standard library, as little of it as it can: a sandbox's start is
most of what a score costs. Answer and tests run in two sandboxes and share one socket, a line of JSON a message. Only plain data crosses it;
any other object stays on its side, and the other side holds a Remote of it. So an answer never sees what it is compared with, cannot reach the
verdict, and cannot bring along an object that equals everything.
"""

from __future__ import annotations

import builtins
import operator
import os
import sys
from abc import ABC, abstractmethod

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

MAX_MESSAGE_BYTES = 16 * 2**20
NOBODY = 65534
CONTAINERS: dict[str, Callable[[list], Any]] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
EXACT = {"Decimal": "decimal", "Fraction": "fractions"}
"""Numbers that travel as their text, and the modules they are from."""

AMONG_OBJECTS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor", "lt", "le", "gt", "ge")
OF_ONE_OBJECT = ("len", "bool", "next", "aiter", "anext", "str", "repr", "getitem", "setitem", "delitem", "neg", "abs")
OF_FUNCTIONS = ("__name__", "__qualname__", "__doc__", "__defaults__", "__kwdefaults__")
"""The only attributes with two underscores that are asked for from afar."""
OPERATIONS: dict[str, Callable] = {
    "call": lambda function, *arguments, **keywords: function(*arguments, **keywords),
    **{name: getattr(builtins, name) for name in ("getattr", "setattr", "iter", "len", "bool", "next", "aiter", "anext", "str", "repr")},
    **{name: getattr(operator, name) for name in (*AMONG_OBJECTS, "eq", "getitem", "setitem", "delitem", "neg", "abs")},
}


class UnsupportedError(BaseException):
    """The tests hand over something that cannot travel. No Exception, so that no test catches it."""


class Peer(ABC):
    """One end of the socket. Either side may ask while the other waits for its reply: the tests for work, the answer for a callback."""

    def __init__(self, channel_fd: int):
        self._reader, self._writer = os.fdopen(channel_fd, "rb"), os.fdopen(os.dup(channel_fd), "wb")
        self._kept: list[Any] = []
        self._remotes: dict[int, Remote] = {}

    def ask(self, operation: str, *arguments: Any, **keywords: Any) -> Any:
        """The other side's result, or its exception as the nearest builtin one. Lists, dicts and sets that it changed are changed here."""
        self._send({"ask": operation, "arguments": [*map(self.pack, arguments)], "keywords": self.pack(keywords)})
        while "ask" in (message := self._receive()):
            self._send(self.serve(message))
        for index, changed in message.get("changed", ()):
            _overwrite(arguments[index], self.unpack(changed))
        if "raised" in message:
            raise _as_builtin(*message["raised"])
        return self.unpack(message["value"])

    def serve(self, message: dict[str, Any]) -> dict[str, Any]:
        """Does what was asked, and says what came of it."""
        try:
            arguments = [self.unpack(argument) for argument in message["arguments"]]
            value = self.pack(self.do(message["ask"], arguments, self.unpack(message["keywords"])))
            now = [self.pack(argument) for argument in arguments]
        except Exception as error:
            kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins")
            return {"raised": [kind, str(error)]}
        return {"value": value, "changed": [pair for pair in enumerate(now) if pair[1] != message["arguments"][pair[0]]]}

    def serve_for_ever(self) -> None:
        while True:
            self._send(self.serve(self._receive()))

    @abstractmethod
    def do(self, operation: str, arguments: Sequence[Any], keywords: dict[str, Any]) -> Any: ...

    @abstractmethod
    def pack_object(self, value: Any) -> dict[str, Any]: ...

    @abstractmethod
    def unpack_object(self, kind: str, content: Any) -> Any: ...

    def keep(self, value: Any) -> int:
        """The number under which the other side knows an object of this one."""
        number = next((number for number, kept in enumerate(self._kept) if kept is value), len(self._kept))
        if number == len(self._kept):
            self._kept.append(value)
        return number

    def pack(self, value: Any) -> Any:
        """Plain data as JSON; of a subclass, the plain part."""
        if value is None or isinstance(value, bool | int | float | str):
            return value
        for name, kind in CONTAINERS.items():
            if isinstance(value, kind):  # type: ignore[arg-type]
                return {name: [self.pack(item) for item in value]}
        if isinstance(value, dict):
            return {"dict": [[self.pack(key), self.pack(item)] for key, item in value.items()]}
        if isinstance(value, bytes | bytearray):
            return {"bytes": value.hex()}
        if isinstance(value, complex):
            return {"complex": [value.real, value.imag]}
        if isinstance(value, range):
            return {"range": [value.start, value.stop, value.step]}
        for name, module in EXACT.items():
            if module in sys.modules and isinstance(value, getattr(sys.modules[module], name)):
                return {name: str(value)}
        return self.pack_object(value)

    def unpack(self, packed: Any) -> Any:
        if not isinstance(packed, dict):
            return packed
        ((kind, content),) = packed.items()
        if kind in CONTAINERS:
            return CONTAINERS[kind]([self.unpack(item) for item in content])
        if kind in EXACT:
            return getattr(__import__(EXACT[kind]), kind)(content)
        if kind == "dict":
            return {self.unpack(key): self.unpack(item) for key, item in content}
        if kind == "bytes":
            return bytes.fromhex(content)
        if kind == "complex":
            return complex(*content)
        if kind == "range":
            return range(*content)
        return self.unpack_object(kind, content)

    def _send(self, message: dict[str, Any]) -> None:
        import json

        self._writer.write(json.dumps(message).encode() + b"\n")
        self._writer.flush()

    def _receive(self) -> dict[str, Any]:
        import json

        line = self._reader.readline(MAX_MESSAGE_BYTES)
        if not line.endswith(b"\n"):
            raise ConnectionError("the other side has ended, or says too much")
        return json.loads(line)


class Answer(Peer):
    """The side of the answer: it keeps its objects, and does with them what it is asked."""

    def __init__(self, channel_fd: int, names: dict[str, Any]):
        super().__init__(channel_fd)
        self._names = names
        self._loop: Any = None

    def do(self, operation: str, arguments: Sequence[Any], keywords: dict[str, Any]) -> Any:
        if operation == "name":
            return self._names[arguments[0]]
        return self._result_of(*arguments) if operation == "await" else OPERATIONS[operation](*arguments, **keywords)

    def _result_of(self, awaitable: Any) -> Any:
        """All that is awaited runs in one event loop, as it would within one program."""
        import asyncio

        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        return self._loop.run_until_complete(awaitable)

    def pack_object(self, value: Any) -> dict[str, Any]:
        if isinstance(value, _Callback):
            return {"callback": value.number}
        if isinstance(value, Lent):
            return {"lent": value.number_}
        return {"awaitable" if hasattr(type(value), "__await__") else "object": self.keep(value)}

    def unpack_object(self, kind: str, content: Any) -> Any:
        if kind == "lent":
            return self._remotes.setdefault(content, Lent(self, content))
        return self._kept[content] if kind == "object" else _Callback(self, content)


class _Callback:
    """A function of the tests, in the hands of the answer."""

    def __init__(self, peer: Peer, number: int):
        self.peer, self.number = peer, number

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self.peer.ask("callback", self.number, *arguments, **keywords)


class Tests(Peer):
    """The side of the tests: it asks, decides, and lets its own functions be called, but not looked into.

    Objects of classes that the tests define, and plain iterators, are lent to the answer: it may use them, but never replace what they do.
    """

    def __init__(self, channel_fd: int):
        super().__init__(channel_fd)
        self._callbacks: list[Callable] = []

    def do(self, operation: str, arguments: Sequence[Any], keywords: dict[str, Any]) -> Any:
        if operation == "callback":
            return self._callbacks[arguments[0]](*arguments[1:], **keywords)
        if operation not in OPERATIONS or not arguments or not _is_permitted(operation, *arguments):
            raise PermissionError("an answer may call the tests' functions, use the objects that they lend it, and do nothing else")
        value = OPERATIONS[operation](*arguments, **keywords)
        try:
            self.pack(value)
        except UnsupportedError as error:  # what an answer finds by looking around is not what the tests hand over
            raise AttributeError(str(error)) from None
        return value

    def pack_object(self, value: Any) -> dict[str, Any]:
        if isinstance(value, Remote):
            return {"object": value.number_}
        if _is_of_tests(value) or _is_iterator(value):
            return {"lent": self.keep(value)}
        if not callable(value):
            kind = type(value).__name__
            raise UnsupportedError(
                f"the tests pass a {kind} to the answer; only plain data, functions and objects of their own classes can travel"
            )
        self._callbacks.append(value)
        return {"callback": len(self._callbacks) - 1}

    def unpack_object(self, kind: str, content: Any) -> Any:
        if kind == "lent":
            return self._kept[content]
        if kind == "callback":
            return self._callbacks[content]
        number = int(content)
        return self._remotes.setdefault(number, RemoteAwaitable(self, number) if kind == "awaitable" else Remote(self, number))


def _is_of_tests(value: Any) -> bool:
    return type(value).__module__ == "tests"


def _is_iterator(value: Any) -> bool:
    """A generator or the like, which has nothing to it but its next item."""
    return hasattr(type(value), "__next__") and type(value).__module__ in ("builtins", "itertools")


def _is_permitted(operation: str, owner: Any, name: Any = "", *_: Any) -> bool:
    """What an answer may do with an object of the tests. A method, or what a class computes, cannot be set: it may be part of a check."""
    if _is_iterator(owner):
        return operation in ("iter", "next")
    if not _is_of_tests(owner):
        return False
    if operation not in ("getattr", "setattr"):
        return True
    if not isinstance(name, str) or name.startswith("__"):
        return False
    if operation == "getattr":
        return True
    of_class = next((vars(kind)[name] for kind in type(owner).__mro__ if name in vars(kind)), None)
    is_computed = hasattr(type(of_class), "__get__") and not hasattr(type(of_class), "__set__")
    return not is_computed and not callable(vars(owner).get(name) if hasattr(owner, "__dict__") else None)


class Remote:
    """An object of the answer, in the hands of the tests.

    It may be called, looked into and gone through. Operators, == among them, are the answer's only between two of its own objects: what it
    says of itself beside a value of the tests counts for nothing.
    """

    is_lent_ = False

    def __init__(self, peer: Peer, number: int):
        vars(self).update(peer_=peer, number_=number)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self.peer_.ask("call", self, *arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in OF_FUNCTIONS:
            raise AttributeError(name)
        return self.peer_.ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.peer_.ask("setattr", self, name, value)

    def __iter__(self) -> Iterator[Any]:
        iterator = self.peer_.ask("iter", self)
        while True:
            try:
                yield self.peer_.ask("next", iterator)
            except StopIteration:
                return

    def __eq__(self, other: object) -> bool:
        return self is other or ((self.is_lent_ or isinstance(other, Remote)) and self.peer_.ask("eq", self, other) is True)

    def __hash__(self) -> int:
        return hash(self.number_)


def _own(name: str) -> Callable:
    return lambda self, *arguments: self.peer_.ask(name, self, *arguments)


def _among(name: str) -> Callable:
    return lambda self, other: self.peer_.ask(name, self, other) if self.is_lent_ or isinstance(other, Remote) else NotImplemented


for _name in OF_ONE_OBJECT:
    setattr(Remote, f"__{_name}__", _own(_name))
for _name in AMONG_OBJECTS:
    setattr(Remote, f"__{_name.strip('_')}__", _among(_name))
Remote.__doc__ = property(lambda self: self.peer_.ask("getattr", self, "__doc__"))  # type: ignore[assignment]


class RemoteAwaitable(Remote):
    """A coroutine or the like of the answer. Awaited by the tests, or run by asyncio.run, it runs to its end where it is."""

    def __await__(self) -> Iterator[Any]:
        return self.peer_.ask("await", self)
        yield  # what makes it an iterator

    def send(self, _: Any) -> None:
        raise StopIteration(self.peer_.ask("await", self))

    def __next__(self) -> None:
        self.send(None)

    def throw(self, error: BaseException, *_: Any) -> None:
        raise error

    def close(self) -> None:
        pass


class Lent(Remote):
    """An object of the tests, in the hands of the answer: what it says of itself is the tests' word."""

    is_lent_ = True
    __hash__ = Remote.__hash__


def run_tests(tests: Sequence[str], setups: Sequence[int], names: Sequence[str], peer: Tests) -> list[bool]:
    """Which of the tests pass, each run with the answer's ``names`` and what the setups before it left, and nothing from other tests.

    setups   numbers of those tests that test nothing: imports, definitions, assignments
    """
    space = vars(_new_module("tests"))
    for name in names:
        try:
            space[name] = peer.ask("name", name)
        except (KeyError, ConnectionError):
            pass
    passed = []
    for number, test in enumerate(tests):
        before = dict(space)
        is_passed = _passes(test, space)
        if number in setups:
            continue
        passed.append(is_passed)
        space.clear()
        space.update(before)
    return passed


def _passes(test: str, space: dict[str, Any]) -> bool:
    try:
        exec(compile(test, "test", "exec", dont_inherit=True), space)
    except UnsupportedError:
        raise
    except ModuleNotFoundError as error:
        if error.name:  # the answer's exceptions arrive without one
            raise UnsupportedError(f"the tests import {error.name!r}, and the sandbox has Python's standard library only") from None
        return False
    except BaseException:
        return False
    return True


def _new_module(name: str) -> Any:
    """An empty module that the import system knows, as dataclasses and the like want it."""
    sys.modules[name] = module = type(sys)(name)
    return module


def _overwrite(old: Any, new: Any) -> None:
    if type(old) is not type(new):
        return
    if isinstance(old, list):
        old[:] = new
    elif isinstance(old, dict | set):
        old.clear()
        old.update(new)


def _as_builtin(name: str, message: str) -> Exception:
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(message)
        except TypeError:  # UnicodeDecodeError and its like want five arguments
            pass
    return RuntimeError(f"{name}: {message}")


def enter(uid: int, cpu_s: int, memory_bytes: int, processes: int, file_bytes: int) -> None:
    """Gives up root, for a user that nobody else is (the kernel counts processes by user, but never root's), and sets the limits."""
    import resource

    kinds = (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE)
    for kind, limit in zip(kinds, (cpu_s, memory_bytes, processes, file_bytes, 64), strict=True):
        resource.setrlimit(kind, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_MSGQUEUE, (0, 0))
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        try:
            os.setresuid(uid, uid, uid)
        except OSError:  # a container that knows no such user
            os.setresuid(NOBODY, NOBODY, NOBODY)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 2)
    os.close(null)


def main(start: dict[str, Any], job: dict[str, Any]) -> None:
    sys.set_int_max_str_digits(0)
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]  # the interpreter runs without site, which brings them
    enter(**start["limits"])
    os.write(start["ready_fd"], b"1")
    os.close(start["ready_fd"])
    if job["role"] == "tests":
        judge(job["tests"], job["setups"], job["names"], start["channel_fd"])
        return
    if job["role"] == "answer":
        os.dup2(2, 1)  # what it prints is nobody's business, and must not fill a pipe
    names = vars(_new_module("__main__" if job["role"] == "program" else "answer"))
    exec(compile(job["code"], "answer.py", "exec", dont_inherit=True), names)
    if job["role"] == "answer":
        Answer(start["channel_fd"], names).serve_for_ever()


def judge(tests: Sequence[str], setups: Sequence[int], names: Sequence[str], channel_fd: int) -> None:
    """Prints the verdict, where nothing else is printed."""
    import json

    with os.fdopen(os.dup(1), "w") as verdict:
        os.dup2(2, 1)
        try:
            json.dump({"passed": run_tests(tests, setups, names, Tests(channel_fd))}, verdict)
        except UnsupportedError as error:
            json.dump({"unsupported": str(error)}, verdict)
