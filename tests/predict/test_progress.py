"""The progress bar and callbacks of `predict` against Keras's own."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pytest

from ..forms import FORMS
from ..models import floats, keras, pair, rows_of, same

# Keras warns so at the end of each generator, even where nothing is missing.
pytestmark = pytest.mark.filterwarnings("ignore:Your input ran out of data:UserWarning")


def _steps_shown(text: str) -> list[str]:
    """The steps in what a progress bar drew, without times and colours; each with its total behind without one."""
    steps = re.findall(r"\d+/(?:\d+|Unknown)", re.sub(r"\x1b\[[0-9;]*m", "", text))
    return sorted(set(steps), key=lambda step: (int(step.split("/")[0]), "Unknown" not in step))


@pytest.mark.parametrize("verbose", ["auto", 0, 1, 2])
@pytest.mark.parametrize("name", ["sequential", "minus mean"])
@pytest.mark.parametrize("rows", [75, 3])
def test_progress_bar(name: str, verbose: Any, rows: int, capfd: pytest.CaptureFixture[str]) -> None:
    model, fast = pair(name)
    x = floats(4)(rows)
    model.predict(x, batch_size=10, verbose=0)
    model.predict(x, batch_size=10, verbose=verbose)
    expected = capfd.readouterr().out
    fast.predict(x, batch_size=10, verbose=verbose)
    found = capfd.readouterr().out
    assert bool(found) == bool(expected) == (verbose != 0)
    if verbose:
        # Keras draws at most 20 times a second: only the last step is sure to be seen.
        assert _steps_shown(found)[-1:] == _steps_shown(expected)[-1:] == [f"{-(-rows // 10)}/{-(-rows // 10)}"]
        assert {step.split("/")[1] for step in _steps_shown(found)} == {str(-(-rows // 10))}
        assert found.count("\n") == expected.count("\n")


@pytest.mark.parametrize("form", ["arrays", *list(FORMS)[1:]])
@pytest.mark.parametrize("steps", [None, 2, 7])
def test_progress_bar_of_data_in_any_form(form: str, steps: int | None, capfd: pytest.CaptureFixture[str]) -> None:
    model, fast = pair("sequential")
    x = floats(4)(10)
    shown = []
    for one in (model, fast):
        data, size = (x, 3) if form == "arrays" else (FORMS[form](x, 3), None)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*(ran out of data|data ended)", UserWarning)
            one.predict(data, batch_size=size, steps=steps, verbose=1)
        out = capfd.readouterr().out
        assert out
        shown.append(_steps_shown(out)[-1:])
    assert shown[0] == shown[1]


class Recorder(keras.callbacks.Callback):
    """Writes down all that it is told."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.stop_at = stop_at
        self.events: list[tuple[Any, ...]] = []
        self.outputs: list[Any] = []

    def on_predict_begin(self, logs: Any = None) -> None:
        self.events.append(("begin", logs, self.params["steps"], self.params["verbose"]))

    def on_predict_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.events.append(("batch begin", batch, logs))

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        self.events.append(("batch end", batch, sorted(logs)))
        self.outputs.append(keras.tree.map_structure(np.array, logs))
        if batch == self.stop_at:
            self.model.stop_predicting = True

    def on_predict_end(self, logs: Any = None) -> None:
        self.events.append(("end", logs))


@pytest.mark.parametrize("form", ["arrays", *FORMS])
@pytest.mark.parametrize("stop_at", [None, 0, 2])
@pytest.mark.parametrize("name", ["nested outputs", "minus mean"])
def test_callbacks(name: str, form: str, stop_at: int | None) -> None:
    model, fast = pair(name)
    x = floats(4)(11)
    expected, found = Recorder(stop_at), Recorder(stop_at)
    results = []
    for one, recorder in ((model, expected), (fast, found)):
        data = x if form == "arrays" else FORMS[form](x, 3)
        size = 3 if form in ("arrays", "tensors") else None
        results.append(one.predict(data, batch_size=size, verbose=0, callbacks=[recorder]))
        assert recorder.model is one
    same(*results)
    assert rows_of(results[1]) == (11 if stop_at is None else 3 * (stop_at + 1))
    if form == "generator" and stop_at is None:
        # Keras begins a batch before it asks a generator, which then has none: nothing to copy.
        assert expected.events.pop(-2)[:2] == ("batch begin", 4)
    assert found.events == expected.events
    same(expected.outputs, found.outputs)
    # The next call starts afresh.
    assert rows_of(fast.predict(x, batch_size=3, verbose=0, callbacks=[Recorder()])) == 11


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_callbacks_with_steps(steps: int) -> None:
    model, fast = pair("sequential")
    x = floats(4)(11)
    expected, found = Recorder(), Recorder()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(ran out of data|data ended)", UserWarning)
        same(
            model.predict(x, batch_size=4, steps=steps, verbose=0, callbacks=[expected]),
            fast.predict(x, batch_size=4, steps=steps, verbose=0, callbacks=[found]),
        )
    assert found.events == expected.events


def test_lambda_callbacks_and_callback_lists() -> None:
    model, fast = pair("sequential")
    x = floats(4)(11)
    seen: list[int] = []
    fast.predict(
        x, 4, 0, callbacks=keras.callbacks.LambdaCallback(on_predict_batch_end=lambda batch, **_: seen.append(batch))
    )
    assert seen == [0, 1, 2]
    recorder = Recorder()
    fast.predict(x, 4, 0, callbacks=keras.callbacks.CallbackList([recorder], model=fast, steps=3, verbose=0))
    assert [event[0] for event in recorder.events].count("batch end") == 3
    same(model.predict(x, 4, 0, 2), fast.predict(x, 4, 0, 2))  # Keras's order of arguments
