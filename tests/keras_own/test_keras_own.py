"""Keras's own tests of prediction and evaluation, run on engines: the share that passes is printed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

#: Those of `trainer_test.py` that predict or evaluate.
CONCERN_INFERENCE = (
    "predict or evaluate or on_batch_methods or nested_inputs or recompile or stop_loop_evaluate or "
    "callback_methods or state_at_batch_boundary or raggeds or partial_loss or without_training or compute_loss_no"
)
#: What an engine cannot run, with why. Keras runs it, and it passes.
BY_KERAS = {
    "test_rng_updated_during_predict": "the model draws random numbers from a state of its own",
    "test_trainer_with_raggeds_layer": "ragged tensors",
    "test_trainer_with_raggeds_model": "ragged tensors",
    "test_trainer_with_raggeds_functional": "ragged tensors",
}


def test_keras_own_tests_pass_on_engines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "tests.keras_own.adapter", "-p", "no:cacheprovider", "-q"),
            *("-c", os.devnull, f"--rootdir={tmp_path}", "-W", "ignore", "-k", CONCERN_INFERENCE),
            *("--pyargs", "keras.src.trainers.trainer_test"),
        ],
        cwd=tmp_path,
        env={**os.environ, "KERAS_OWN_RESULTS": str(results), "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    lines = [line.split() for line in results.read_text().splitlines()]
    ran = [(outcome, int(runs), name) for outcome, runs, name in lines if outcome != "skipped"]
    passed = [name for outcome, _, name in ran if outcome == "passed"]
    by_keras = sorted(name for _, runs, name in ran if not runs)
    with capsys.disabled():
        print(  # noqa: T201 (what this test is for)
            f"\nKeras's own tests on engines: {len(passed)} of {len(ran)} pass, "
            f"{len(passed) - len(by_keras)} on an engine and {len(by_keras)} by Keras."
        )
    assert len(ran) >= 55, done.stdout[-3000:]
    assert len(passed) >= 0.95 * len(ran), done.stdout[-6000:]
    assert by_keras == sorted(BY_KERAS)
