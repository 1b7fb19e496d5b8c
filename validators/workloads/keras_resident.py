"""Training a Keras model with everything on the GPU: the data set, the order of its images, the weights, the loop.

`model.fit` over tf.data spends its time on the host: at 32 images a step an H200 waits most of each step for the
next batch, for Python, and for hundreds of small kernels to be started. Here the images lie in the GPU's memory, and
one call runs many steps:
- The weights are one flat vector, so that a gradient is one tensor, its all-reduce one call, and Adam a few kernels.
  The network is Keras's own: its layers are called with slices of that vector (`Model.stateless_call`).
- Where XLA compiles it, the loop over the steps is one program on each GPU, all-reduces included (mode "loop"); else
  the graph runs as it is (mode "graph"). Which one ran is in `Training.mode`.

Images are kept as float16, in which 0 .. 255 are exact: TensorFlow gathers that type on every GPU.
Adam: Kingma & Ba, arXiv:1412.6980, in Keras's form (epsilon 1e-7 outside the root), its rate falling linearly.
Works with Keras 3 (TensorFlow 2.16 and later).
"""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass
from typing import Any, Callable, List, NamedTuple, Sequence, Tuple, TypeVar

import numpy as np

from validators.workloads import keras_start

MODES = ("loop", "graph")
MOST_STEPS = 64
"""Steps in one call, at most: the program is compiled for so many."""
WINDOW_S = 0.1
"""A speed is taken over at least so many seconds."""
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7
"""Keras's defaults of Adam."""
FP16_SCALE = 1024.0
"""The loss is multiplied by it in float16, so that small gradients do not vanish; the gradient is divided again."""


class Images(NamedTuple):
    """Images uint8 [n, ...] and labels [n], in the host's memory."""

    images: Any
    labels: Any


class Speeds(NamedTuple):
    """Images a second in each window, and which share of the time went into drawing orders and copying them."""

    windows: List[float]
    loader: float
    copy: float


_Method = TypeVar("_Method", bound=Callable[..., Any])


def _in_words(method: _Method) -> _Method:
    """TensorFlow's error as a RuntimeError or MemoryError with its cause: a caller cannot name its own classes."""

    @functools.wraps(method)
    def told(self: Training, *given: Any, **named: Any) -> Any:
        try:
            return method(self, *given, **named)
        except self.tf.errors.ResourceExhaustedError as problem:
            raise MemoryError(_tell(self.mode, problem)) from None
        except self.tf.errors.OpError as problem:
            raise RuntimeError(_tell(self.mode, problem)) from None

    return told  # type: ignore[return-value]  # wraps: the method's own signature


def _as_they_are(images: Any, step: Any) -> Any:
    del step
    return images


@dataclass(frozen=True)
class Settings:
    """How to train. `batch`: images a step of one GPU. `mode`: "" tries XLA first; else one of MODES.

    `vary`: (images of a step, which step) -> the images to train on. `steps` of an epoch; 0: until every image is seen.
    `exchange` False: each replica applies its own gradients, to learn what exchanging them takes.
    """

    batch: int
    rate: float = 1e-3
    policy: str = "float32"
    mode: str = ""
    seed: int = 1
    vary: Callable[[Any, Any], Any] = _as_they_are
    steps: int = 0
    exchange: bool = True


class Training:
    """A Keras model's training under a strategy. `build(policy)` makes the model; the last layer gives float32 logits.

    Making it puts the data onto every device and compiles: RuntimeError where no mode works, MemoryError where the
    device's memory is too small for a step.
    """

    def __init__(
        self, tf: Any, places: Sequence[str], build: Callable[[str], Any], data: Tuple[Images, Images], how: Settings
    ) -> None:
        train, test = data
        self.tf, self.how, self.places = tf, how, list(places)
        self.replicas = len(places)
        whole = how.batch * self.replicas
        self.steps, self.chunk = _shares(how.steps * whole or len(train.labels), whole)
        self._scale = FP16_SCALE if how.policy == "mixed_float16" else 1.0
        self.strategy = tf.distribute.MirroredStrategy(list(places))
        self._random = np.random.default_rng(how.seed)
        self._images, self._trained = len(train.labels), 0
        with self.strategy.scope():
            tf.keras.utils.set_random_seed(how.seed)
            self.model = build(how.policy)
            try:
                self._place(train, test)
            except tf.errors.ResourceExhaustedError as problem:
                raise MemoryError(f"no room for the images: {keras_start.cause(problem)[:400]}") from None
        self.mode, self.passed_over = self._compile()
        if any("GPU" in place for place in places) and not self.on_gpu:
            raise RuntimeError(f"TensorFlow put the weights or the images elsewhere than on {', '.join(places)}")

    def _place(self, train: Images, test: Images) -> None:
        tf = self.tf
        shapes = [tuple(one.shape) for one in self.model.trainable_variables]
        self._shapes, self._sizes = shapes, [int(np.prod(shape)) for shape in shapes]
        flat = np.concatenate([np.asarray(one.numpy()).ravel() for one in self.model.trainable_variables])
        self._first = flat.astype(np.float32)
        order = np.zeros((self.replicas, self.steps, self.how.batch), np.int64)

        def kept(value: Any) -> Any:
            return tf.Variable(value, trainable=False)

        def half(values: Any) -> Any:  # on the device: NumPy takes a second for it
            return kept(lambda: tf.cast(tf.constant(values), tf.float16))

        self._weights, self._mean, self._square = kept(self._first), kept(flat * 0.0), kept(flat * 0.0)
        self._loss = kept(np.zeros((), np.float32))
        self._order = kept(order)
        self._train = (half(train.images), half(train.labels))
        self._test = (half(test.images), half(test.labels))

    @property
    def parameters(self) -> int:
        """Trained numbers of the model."""
        return sum(self._sizes)

    def _compile(self) -> Tuple[str, str]:
        """The first mode that runs, and why those before it do not."""
        if self.how.mode not in ("", *MODES):
            raise ValueError(f"no such mode: {self.how.mode}; there are {', '.join(MODES)}")
        modes = [self.how.mode] if self.how.mode else list(MODES) if self.on_gpu else ["graph"]
        failed: List[str] = []
        for mode in modes:
            self._run = self._program(mode)
            try:
                self._draw()
                self._chunk(0, 0, 0.0)
                self._sync()
            except self.tf.errors.ResourceExhaustedError as problem:
                raise MemoryError(f"out of memory at {self.how.batch} images a step: {_tell(mode, problem)}") from None
            except Exception as problem:  # XLA fails in many ways; the last mode's failure is raised
                if mode == modes[-1]:
                    raise RuntimeError("; ".join([*failed, _tell(mode, problem)])) from problem
                failed.append(_tell(mode, problem))
                continue
            self.reset()
            return mode, "; ".join(failed)
        raise AssertionError("a mode was tried")

    @property
    def on_gpu(self) -> bool:
        """Whether all replicas are on GPUs, by the devices that their weights and images really lie on."""
        parts = [self.strategy.experimental_local_results(one) for one in (self._weights, self._train[0])]
        found = [{str(one.device) for one in part if "GPU" in one.device.upper()} for part in parts]
        return all(len(one) == self.replicas for one in found)

    def reset(self) -> None:
        """Back to the first weights."""
        self._weights.assign(self._first)
        for one in (self._mean, self._square):
            one.assign(self._first * 0.0)
        self._trained = 0

    # The arithmetic of a step. All of it is traced into a graph once.

    def _logits(self, weights: Any, images: Any, seed: Any, training: bool) -> Any:
        tf = self.tf
        parts = [tf.reshape(one, self._shapes[i]) for i, one in enumerate(tf.split(weights, self._sizes))]
        others = [tf.cast(seed, one.dtype) for one in self.model.non_trainable_variables]  # dropout's seeds, no others
        pixels = tf.cast(images, tf.float32) * (1 / 255)
        logits, _ = self.model.stateless_call(parts, others, pixels, training=training)
        return tf.cast(logits, tf.float32)

    def _gradient(self, weights: Any, images: Any, labels: Any, seed: Any) -> Any:
        """[parameters + 1]: the gradient, and the loss behind it."""
        tf = self.tf
        with tf.GradientTape() as tape:
            tape.watch(weights)
            logits = self._logits(weights, images, seed, True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.cast(labels, tf.int64), logits=logits)
            loss = tf.reduce_mean(losses) * self._scale
        gradient = tape.gradient(loss, weights)
        return tf.concat([gradient, tf.reshape(loss, [1])], 0) * (1 / self._scale / self.replicas)

    def _adam(self, state: Tuple[Any, Any, Any], gradient: Any, step: Any, rate: Any) -> Tuple[Any, Any, Any]:
        tf = self.tf
        weights, mean, square = state
        t = tf.cast(step, tf.float32) + 1.0
        mean = BETA_1 * mean + (1 - BETA_1) * gradient
        square = BETA_2 * square + (1 - BETA_2) * tf.square(gradient)
        rate = rate * tf.sqrt(1 - tf.pow(BETA_2, t)) / (1 - tf.pow(BETA_1, t))
        return weights - rate * mean / (tf.sqrt(square) + EPSILON), mean, square

    def _program(self, mode: str) -> Any:
        """(first step of the epoch, first step of the training, rate, its fall a step) -> nothing; runs `chunk`."""
        tf, strategy = self.tf, self.strategy

        def one_step(i: Any, begin: Any, trained: Any, rate: Any, fall: Any) -> None:
            context = tf.distribute.get_replica_context()
            step = trained + i
            order, replica = tf.convert_to_tensor(self._order), context.replica_id_in_sync_group
            # Under XLA a slice's place must be known when it compiles: each `begin` would be compiled anew, 2.5 s each.
            which = tf.gather(order[replica], begin + i) if mode == "loop" else order[replica, begin + i]
            images, labels = (tf.gather(tf.convert_to_tensor(one), which) for one in self._train)
            images = self.how.vary(images, step)
            seed = tf.stack([step * self.replicas + context.replica_id_in_sync_group, self.how.seed])
            state = tuple(tf.convert_to_tensor(one) for one in (self._weights, self._mean, self._square))
            found = self._gradient(state[0], images, labels, seed)
            if self.replicas > 1 and self.how.exchange:
                found = context.all_reduce(tf.distribute.ReduceOp.SUM, found)
            now = tf.maximum(rate - fall * tf.cast(step, tf.float32), 0.0)
            after = self._adam(state, found[:-1], step, now)
            kept = (self._weights, self._mean, self._square, self._loss)
            for variable, value in zip(kept, (*after, found[-1])):  # noqa: B905 - strict is 3.10+, the host may have 3.9
                strategy.extended.update(variable, _assign, args=(value,), group=False)

        def loop(body: Callable[[Any], None]) -> None:
            def next_step(i: Any) -> Any:
                body(i)
                return (i + 1,)

            tf.while_loop(lambda i: i < self.chunk, next_step, (tf.constant(0),), parallel_iterations=1)

        if mode == "loop":
            inner = tf.function(
                lambda *given: loop(lambda i: one_step(i, *given)), autograph=False, jit_compile=True
            )  # fmt: skip
            return tf.function(lambda *given: strategy.run(inner, args=given), autograph=False)

        return tf.function(
            lambda *given: loop(lambda i: strategy.run(one_step, args=(i, *given))), autograph=False
        )  # fmt: skip

    # The loop from outside.

    def _chunk(self, begin: int, total: int, rate: float) -> None:
        tf = self.tf
        fall = rate / total if total else 0.0
        with tf.device("/CPU:0"):
            given = (tf.constant(begin), tf.constant(self._trained), tf.constant(rate), tf.constant(fall))
        self._run(*given)
        self._trained += self.chunk

    def _draw(self) -> Tuple[float, float]:
        """A new order of the images onto each device; seconds of drawing and of copying it."""
        began = time.perf_counter()
        wanted = self.replicas * self.steps * self.how.batch
        orders = [self._random.permutation(self._images) for _ in range(math.ceil(wanted / self._images))]
        order = np.concatenate(orders)[:wanted].reshape(self.replicas, self.steps, self.how.batch)
        drawn = time.perf_counter()
        self._order.assign(order)
        return drawn - began, time.perf_counter() - drawn

    def _sync(self) -> None:
        """Wait for all devices. Raises RuntimeError where the loss is not a number."""
        sync = getattr(self.tf.test.experimental, "sync_devices", None)
        if sync is not None:
            sync()
        losses = [float(one.numpy()) for one in self.strategy.experimental_local_results(self._loss)]
        if not all(math.isfinite(one) for one in losses):
            raise RuntimeError(f"the loss is {losses[0]} after {self._trained} steps")

    @_in_words
    def epoch(self, epochs: int) -> float:
        """Train for one of `epochs` epochs, over which the rate falls to 0; seconds."""
        began = time.perf_counter()
        self._draw()
        for begin in range(0, self.steps, self.chunk):
            self._chunk(begin, epochs * self.steps, self.how.rate)
        self._sync()
        return time.perf_counter() - began

    @_in_words
    def accuracy(self) -> float:
        """Share of the test images that the first replica names rightly."""
        if not hasattr(self, "_right"):
            self._right = self.tf.function(self._count, autograph=False)
        return int(self._right().numpy()) / int(self._test[1].shape[0])

    def _count(self) -> Any:
        tf = self.tf
        weights, images, labels = (
            self.strategy.experimental_local_results(one)[0] for one in (self._weights, *self._test)
        )
        right = []
        with tf.device(self.places[0]):
            for begin in range(0, int(labels.shape[0]), 1000):
                some = tf.convert_to_tensor(images)[begin : begin + 1000]
                logits = self._logits(tf.convert_to_tensor(weights), some, tf.constant([0, 0]), False)
                named = tf.argmax(logits, axis=-1)
                true = tf.cast(tf.convert_to_tensor(labels)[begin : begin + 1000], tf.int64)
                right.append(tf.reduce_sum(tf.cast(named == true, tf.float32)))
            return tf.cast(tf.add_n(right), tf.int64)

    @_in_words
    def replicas_agree(self) -> bool:
        """Whether every replica holds the same weights and the same means of its gradients, to the last bit."""
        for variable in (self._weights, self._mean, self._square):
            first, *others = [one.numpy() for one in self.strategy.experimental_local_results(variable)]
            if len(others) != self.replicas - 1 or any(one.tobytes() != first.tobytes() for one in others):
                return False
        return True

    @_in_words
    def speed(self, seconds: float, *, redraw: bool = True) -> Speeds:
        """Train on at rate 0 for about so many seconds, at least three windows; what was trained stays.

        `redraw`: the images in a new order for each epoch, as in training.
        """
        chunks, began, at = 1, time.perf_counter(), self.steps
        rates: List[float] = []
        whole = drawing = copying = 0.0
        while len(rates) < 3 or time.perf_counter() - began < seconds:
            start_s = time.perf_counter()
            for _ in range(chunks):
                if at >= self.steps and not redraw:
                    at = 0
                elif at >= self.steps:
                    self._sync()  # else the copy's time is that of the steps it waits for
                    drawn, copied = self._draw()
                    drawing, copying, at = drawing + drawn, copying + copied, 0
                self._chunk(at, 0, 0.0)
                at += self.chunk
            self._sync()
            took = time.perf_counter() - start_s
            if took < WINDOW_S and chunks < 10**4:  # too short: a longer one instead
                chunks = min(chunks * 4, max(chunks + 1, math.ceil(1.2 * chunks * WINDOW_S / took)))
                whole = drawing = copying = 0.0
                rates.clear()
                continue
            whole += took
            rates.append(chunks * self.chunk * self.how.batch * self.replicas / took)
        return Speeds(rates, drawing / whole, copying / whole)


def _assign(variable: Any, value: Any) -> Any:
    return variable.assign(value)


def _tell(mode: str, problem: BaseException) -> str:
    return f"{mode}: {type(problem).__name__}: {keras_start.cause(problem)[:400]}"


def _shares(images: int, batch: int) -> Tuple[int, int]:
    """Steps of an epoch, and of one call: every image is seen, in calls of equal length."""
    steps = math.ceil(images / batch)
    calls = math.ceil(steps / MOST_STEPS)
    chunk = math.ceil(steps / calls)
    return calls * chunk, chunk
