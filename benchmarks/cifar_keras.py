"""Keras's CNN on CIFAR-10's shapes: plain `model.fit` over tf.data against the check's loop with the data on the GPU.

    python benchmarks/cifar_keras.py [--batches 32,1024,4096] [--seconds 2] [--float32] [--modes MODES] [--quick]

Under MirroredStrategy, on one GPU and on all that are visible; `batch` is images a step of one GPU. Plain: images as
float32 through tf.data (shuffle over all, batch, prefetch), Adam, float32 (TF32 on tensor cores), a bounded number of
steps after a warm-up. Ours: validators/workloads/keras_resident.py as the check `cifar` runs it, in the number format
that it chooses for the card, or in float32 with --float32. Images are random: the speed does not depend on them.
Each side runs in a process of its own with a deadline; what fails or hangs is told, and the next goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from validators.workloads import cifar_keras, keras_start
from validators.workloads.keras_resident import Settings

DEADLINE_S = 240.0
"""XLA compiles for some 45 s, for each batch."""
IMAGES = 50_000
LEAST_RATIO = 3.0


def say(**row: object) -> None:
    print("@" + json.dumps(row), flush=True)


def plain(gpus: int, batches: list[int], seconds: float) -> None:
    """model.fit over tf.data, as a user writes it: images a second over bounded steps, three times."""
    tf = keras_start.start()
    places = keras_start.devices(tf, gpus)
    some = cifar_keras.synthetic(IMAGES)
    pixels = some.images.astype("float32") / 255
    for batch in batches:
        whole = batch * len(places)
        strategy = tf.distribute.MirroredStrategy(places)
        with strategy.scope():
            model = cifar_keras.network(tf, "float32")
            loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(optimizer="adam", loss=loss, metrics=["accuracy"])
        data = tf.data.Dataset.from_tensor_slices((pixels, some.labels)).shuffle(IMAGES).batch(whole, True)
        data = data.repeat().prefetch(tf.data.AUTOTUNE)
        steps = 4
        model.fit(data, epochs=1, steps_per_epoch=steps, verbose=0)  # trace and warm up
        begin = time.perf_counter()
        model.fit(data, epochs=1, steps_per_epoch=steps, verbose=0)
        guess = steps / (time.perf_counter() - begin)
        # fit fills its shuffle buffer each time; a whole epoch has that, too, so no less than half of one
        steps = max(int(guess * seconds), IMAGES // whole // 2, 4)
        clock = _clock(tf)
        model.fit(data, epochs=3, steps_per_epoch=max(1, steps // 3), verbose=0, callbacks=[clock])
        speeds = [max(1, steps // 3) * whole / one for one in clock.times]
        say(gpus=gpus, batch=batch, side="plain", speeds=speeds)


def _clock(tf: Any) -> Any:
    """A callback that notes the seconds of each epoch in `times`."""

    class Clock(tf.keras.callbacks.Callback):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.times: list[float] = []

        def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
            self.began = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: object = None) -> None:
            self.times.append(time.perf_counter() - self.began)

    return Clock()


def ours(gpus: int, batches: list[int], seconds: float, float32: bool, mode: str) -> None:
    """The check's own training."""
    tf = keras_start.start()
    places = keras_start.devices(tf, gpus)
    images = (cifar_keras.synthetic(IMAGES), cifar_keras.synthetic(1000))
    policy = "float32" if float32 else keras_start.precision(tf, gpus)
    for batch in batches:
        begin = time.perf_counter()
        training, fits = cifar_keras.fitting(tf, places, images, Settings(batch, policy=policy, mode=mode))
        made = time.perf_counter() - begin
        found = training.speed(seconds)
        note = f"{training.mode}, {policy}, compiled in {made:.1f} s {training.passed_over}"
        del training  # its images
        say(gpus=gpus, batch=fits, side="ours", speeds=found.windows, note=note)


def child(side: str, gpus: int, options: argparse.Namespace, batches: str, mode: str = "") -> list[dict[str, object]]:
    """One side in a process of its own; its rows, those before a failure too."""
    command = [sys.executable, __file__, "--side", side, "--gpus", str(gpus), "--batches", batches]
    command += ["--seconds", str(options.seconds), "--mode", mode] + (["--float32"] if options.float32 else [])
    words, lines = "", ""
    began = time.perf_counter()
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=options.deadline, check=False)
        lines = ran.stdout
        if ran.returncode:
            words = (ran.stderr.strip().splitlines() or ["no words"])[-1][:600]
    except subprocess.TimeoutExpired as late:
        lines = (late.stdout or b"").decode() if isinstance(late.stdout, bytes) else (late.stdout or "")
        words = f"not over after {options.deadline:g} s"
    what = f"{side} {mode} on {gpus} GPU(s), batch {batches}"
    print(f"  {what}: {time.perf_counter() - began:.1f} s{f'; FAILED: {words}' if words else ''}", flush=True)
    return [json.loads(line[1:]) for line in lines.splitlines() if line.startswith("@")]


def table(rows: list[dict[str, object]]) -> None:
    """Ratios: ours to plain, and all GPUs to one."""
    speeds: dict[tuple[str, int, int], float] = {}
    print(f"{'gpus':>5} {'batch':>6} {'side':>6} {'images/s':>12} {'spread':>8}  ratio")
    for row in rows:
        found = [float(one) for one in row["speeds"]]  # type: ignore[attr-defined]
        middle = statistics.median(found)
        key = (str(row["side"]), int(str(row["gpus"])), int(str(row["batch"])))
        speeds[key] = max(middle, speeds.get(key, 0.0))
        side, gpus, batch = key
        words = []
        against = speeds.get(("plain", gpus, batch))
        if side == "ours" and against:
            reached = "reached" if middle >= LEAST_RATIO * against else "missed"
            words.append(f"{middle / against:.2f} of plain (target {LEAST_RATIO:g}: {reached})")
        one = speeds.get((side, 1, batch))
        if gpus > 1 and one:
            words.append(f"{middle / one:.2f} of one GPU")
        spread = (max(found) - min(found)) / middle
        print(
            f"{gpus:>5} {batch:>6} {side:>6} {middle:>12,.0f} {spread:>8.1%}  {', '.join(words)} {row.get('note', '')}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", default="32,1024,4096")
    parser.add_argument("--seconds", type=float, default=2.0, help="of measuring, for each figure")
    parser.add_argument("--float32", action="store_true", help="our side in float32, as the plain one")
    parser.add_argument("--modes", default="", help="run our side in each of these, instead of its own choice")
    parser.add_argument("--deadline", type=float, default=DEADLINE_S, help="seconds for each process")
    parser.add_argument("--quick", action="store_true", help="batch 1024 only, one second each")
    parser.add_argument("--all", type=int, default=-1, help="GPUs to use in all; -1: those that are visible")
    parser.add_argument("--side", default="", help=argparse.SUPPRESS)
    parser.add_argument("--gpus", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--mode", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.batches, options.seconds = "1024", 1.0
    batches = [int(one) for one in options.batches.split(",")]
    if options.side == "plain":
        plain(options.gpus, batches, options.seconds)
        return
    if options.side == "ours":
        ours(options.gpus, batches, options.seconds, options.float32, options.mode)
        return
    count = options.all
    if count < 0:
        ask = "import tensorflow as tf; print('@', len(tf.config.list_physical_devices('GPU')))"
        asked = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=False)
        count = int((asked.stdout.rpartition("@")[2] or "0").strip() or 0)
    print(f"{count} GPUs that TensorFlow sees{'' if count else ': figures of the CPU, of no weight'}", flush=True)
    rows: list[dict[str, object]] = []
    for gpus in sorted({min(count, 1), count}):
        rows += child("plain", gpus, options, options.batches)
        for mode in options.modes.split(","):
            rows += child("ours", gpus, options, options.batches, mode)
    table(rows)


if __name__ == "__main__":
    main()
