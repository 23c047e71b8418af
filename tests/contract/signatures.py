"""Reads the signatures in docstrings of bindings, and says whether a call fits one of them.

pybind11 writes `parse(self: tensorrt.OnnxParser, model: buffer, path: str = None) -> bool`, Cython
`cudaMemcpyAsync(dst, src, size_t count, kind: cudaMemcpyKind, stream)`; functions of Python code are in Python's form.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

OPEN, CLOSE = "([{<", ")]}>"
CLASS = re.compile(r"(?:tensorrt_bindings\.tensorrt|tensorrt_rtx_bindings\.tensorrt_rtx)\.([\w.]+)")


@dataclass(frozen=True)
class Call:
    """The arguments of a call. `complete` is False where * or ** hide some of them."""

    positional: int = 0
    keywords: tuple[str, ...] = ()
    complete: bool = True

    def __str__(self) -> str:
        shown = [*("_" for _ in range(self.positional)), *(f"{name}=_" for name in self.keywords)]
        return f"({', '.join(shown if self.complete else [*shown, '...'])})"


@dataclass(frozen=True)
class Signature:
    """The parameters of one overload, without self. Nameless parameters (pybind11's arg0) take no keyword."""

    names: tuple[str | None, ...]
    required: int
    open_ended: bool  # *args
    any_keyword: bool  # **kwargs
    keyword_only: dict[str, bool]  # name: required

    def accepts(self, call: Call) -> bool:
        if call.positional > len(self.names) and not self.open_ended:
            return False
        free = {name for name in self.names[call.positional :] if name} | set(self.keyword_only)
        if not self.any_keyword and not free.issuperset(call.keywords):
            return False
        if not call.complete:
            return True
        missing = set(self.names[call.positional : self.required]) - set(call.keywords)
        return not missing and all(name in call.keywords for name, needed in self.keyword_only.items() if needed)


def accepted(signatures: list[str], call: Call, of_object: bool) -> bool:
    """Whether one overload takes the call. A signature that cannot be read takes every call: it tells nothing."""
    read = [parse(signature, of_object) for signature in signatures]
    return not read or any(signature is None or signature.accepts(call) for signature in read)


def parse(text: str, of_object: bool = True) -> Signature | None:
    """One signature; None where it cannot be read. A leading self is left out if the call is made on an object."""
    parameters = _parameters(text)
    if parameters is None:
        return None
    names: list[str | None] = []
    required, open_ended, any_keyword, only_keywords = 0, False, False, False
    keyword_only: dict[str, bool] = {}
    for index, parameter in enumerate(parameters):
        if parameter == "/":  # those before take no keyword
            names = [None] * len(names)
            continue
        if parameter.startswith("**"):
            any_keyword = True
            continue
        if parameter.startswith("*"):
            open_ended, only_keywords = open_ended or parameter != "*", True
            continue
        declared, _, default = parameter.partition("=")
        # The name is the last word before the colon of Python's "name: type", and the last word of C's "type name".
        match = re.search(r"(\w+)\s*$", declared.partition(":")[0])
        if match is None:
            return None
        name = match[1]
        if index == 0 and of_object and name in ("self", "this"):
            continue
        if only_keywords:
            keyword_only[name] = not default
            continue
        names.append(None if re.fullmatch(r"arg\d+", name) else name)
        required = required if default else len(names)
    return Signature(tuple(names), required, open_ended, any_keyword, keyword_only)


def returned_class(text: str) -> str | None:
    """The TensorRT class that a signature says is returned."""
    match = CLASS.fullmatch(text.rpartition(" -> ")[2].strip())
    return match[1] if match else None


def class_path(full_name: str) -> str | None:
    """The TensorRT class of a full name: "ILogger.Severity" of "tensorrt_bindings.tensorrt.ILogger.Severity"."""
    match = CLASS.fullmatch(full_name)
    return match[1] if match else None


def _parameters(text: str) -> list[str] | None:
    """The texts between the commas of a parameter list."""
    start = text.find("(")
    if start < 0:
        return None
    parameters: list[str] = []
    depth, current = 0, ""
    for position, letter in enumerate(text[start:], start):
        if letter == ">" and text[position - 1] == "-":  # the arrow of a Callable
            current += letter
            continue
        depth += (letter in OPEN) - (letter in CLOSE)
        if depth == 0:
            return [*parameters, current.strip()] if current.strip() else parameters
        if letter == "," and depth == 1:
            parameters.append(current.strip())
            current = ""
        elif position > start:
            current += letter
    return None
