"""The calls of a model's layers as a list that can be changed and built again.

Calls inside nested models stand in the same list, so that the model built from it has none.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from mobilenet.errors import UsageError
from mobilenet.typing import Array

SLASH = "/"
_PREPROCESSING = "mobilenet_preprocessing"  # attribute of a model, see `input_preprocessing`


class Tensor:
    """One output of a call."""

    def __init__(self, call: Call, index: int = 0) -> None:
        self.call, self.index = call, index


@dataclasses.dataclass(eq=False)
class Call:
    """One call of one layer.

    Attributes:
        kind: class of the layer.
        config: the layer's configuration.
        layer: the layer in the original model; `None` for a new one.
        outputs: the symbolic outputs in the original model, for their shapes and dtypes.
        args, kwargs: of the call; `Tensor` where a layer's output stands.
        path: names of the nested models around the call, from the outermost.
        suffix: of a new layer: its name is that of the original layer before it, and this.
        own_name: of a new layer: its name, instead of one with a suffix.
        weights: of a new layer; without them it is initialized.
        name: in the model that is built.
    """

    kind: type
    config: dict[str, Any]
    layer: Any
    outputs: list[Any]
    args: Any = ()
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    path: tuple[str, ...] = ()
    suffix: str = ""
    own_name: str = ""
    weights: Sequence[Array] = ()
    name: str = ""

    @property
    def inputs(self) -> list[Tensor]:
        """All outputs of other calls among the arguments."""
        leaves = tf.nest.flatten((self.args, self.kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def replace_inputs(self, replace: Callable[[Tensor], Tensor]) -> None:
        """Changes every output of another call among the arguments."""
        self.args, self.kwargs = _map_tensors(replace, (self.args, self.kwargs))


def new_call(
    kind: type, config: dict[str, Any], inputs: list[Tensor], like: Call, suffix: str
) -> Call:
    """The call of a new layer whose output has the shape and dtype of that of `like`."""
    dtype = like.outputs[0].dtype.name
    args = (inputs[0],) if len(inputs) == 1 else (inputs,)
    return Call(kind, {**config, "dtype": dtype}, None, like.outputs, args, {}, like.path, suffix)


Replacement = tuple[list[Call], Tensor]  # calls, and the tensor in place of the old output


class CallList:
    """All calls of a functional or Sequential model, in execution order.

    Args:
        model: a model that `flatten.check_functional` accepts.
        allow_shared: layers with weights may be called more than once.

    Raises:
        UsageError: a nested model has no graph, or a layer with weights is called twice.
    """

    def __init__(self, model: Any, allow_shared: bool = False) -> None:
        self.model = model
        self._allow_shared = allow_shared
        self.calls: list[Call] = []
        self._called: set[int] = set()
        self.inputs = [self._add_input(tensor) for tensor in model.inputs]
        self.outputs = self._expand(model, self.inputs, (), None)

    def use_counts(self) -> dict[Call, int]:
        """How often the output of each call is used, by calls and as output of the model."""
        counts = dict.fromkeys(self.calls, 0)
        for tensor in [*self.outputs, *(tensor for call in self.calls for tensor in call.inputs)]:
            counts[tensor.call] += 1
        return counts

    def only_consumer(self, call: Call) -> Call | None:
        """The call that alone takes the output of another one; `None` where there are several."""
        consumers = [c for c in self.calls if any(tensor.call is call for tensor in c.inputs)]
        is_output = any(tensor.call is call for tensor in self.outputs)
        return consumers[0] if len(consumers) == 1 and not is_output else None

    def substitute(self, find: Callable[[Call], Replacement | None]) -> None:
        """Replaces calls by others, in execution order.

        Args:
            find: returns what replaces a call, or `None`; the inputs of the call are those after
                all replacements before it. A call is removed by `([], call.inputs[0])`.
        """
        calls: list[Call] = []
        replaced: dict[Call, Tensor] = {}

        def current(tensor: Tensor) -> Tensor:
            return replaced.get(tensor.call, tensor)

        for call in self.calls:
            if any(tensor.call in replaced for tensor in call.inputs):
                call.replace_inputs(current)
            replacement = find(call)
            if replacement is None:
                calls.append(call)
                continue
            new, replaced[call] = replacement
            calls += new
        self.calls = calls
        self.outputs = [current(tensor) for tensor in self.outputs]

    def prune(self) -> None:
        """Removes calls that no output depends on; inputs of the model stay."""
        needed = {tensor.call for tensor in [*self.outputs, *self.inputs]}
        for call in reversed(self.calls):
            if call in needed:
                needed.update(tensor.call for tensor in call.inputs)
        self.calls = [call for call in self.calls if call in needed]

    def build(self, dtype: str | None = None, distributed: bool = True) -> Any:
        """A functional model of new layers with the weights of the original ones.

        Args:
            dtype: dtype policy of all layers; that of the original layers when left out.
            distributed: make the variables in the strategy scope of the original model.
        """
        self.prune()
        with _scope_of(self.model) if distributed else contextlib.nullcontext():
            made = self._call_all(lambda call: _new_layer(call, dtype))
            built = tf_keras.Model(
                [made[tensor.call][0][0] for tensor in self.inputs],
                [made[tensor.call][0][tensor.index] for tensor in self.outputs],
                name=self.model.name.replace(SLASH, "_"),
            )
        for call, (_, layer) in made.items():
            if call.layer is not None and call.layer.weights:
                layer.set_weights(call.layer.get_weights())
            elif call.weights:
                layer.set_weights(call.weights)
        if hasattr(self.model, _PREPROCESSING):
            setattr(built, _PREPROCESSING, getattr(self.model, _PREPROCESSING))
        return built

    def execute(
        self, image: Any, training: bool, inputs_of: Callable[[Any, list[Any]], list[Any]]
    ) -> Any:
        """The output of the original layers for an image, of a model of one input and one output.

        Symbolic calls would become part of the layers; these leave no trace.

        Args:
            image: of the model.
            training: of layers that are not called with a value of their own.
            inputs_of: the inputs of a layer, from the layer and the outputs that it takes.
        """
        made: dict[Call, list[Any]] = {self.inputs[0].call: [image]}
        for call in self.calls:
            if call in made:
                continue
            values = iter(inputs_of(call.layer, [made[t.call][t.index] for t in call.inputs]))
            args, kwargs = _map_tensors(lambda _: next(values), (call.args, call.kwargs))  # noqa: B023
            if call.layer._expects_training_arg:
                kwargs = {"training": training, **kwargs}
            made[call] = tf.nest.flatten(call.layer(*args, **kwargs))
        return made[self.outputs[0].call][self.outputs[0].index]

    def call_again(self) -> Any:
        """A flat functional model of the original layers, on the original model's inputs.

        Raises:
            UsageError: two layers have one name.
        """
        made = self._call_all(lambda call: call.layer)
        outputs = [made[tensor.call][0][tensor.index] for tensor in self.outputs]
        try:
            return tf_keras.Model(self.model.inputs, outputs, name=self.model.name)
        except ValueError as error:
            raise UsageError(
                "model",
                f"{self.model.name} ({error})",
                "layers of different names, in nested models too",
                "mobilenet.models.graph.flatten.flatten(model) renames them",
            ) from None

    def _call_all(self, layer_of: Callable[[Call], Any]) -> dict[Call, tuple[list[Any], Any]]:
        """Outputs and layer of every call."""
        _assign_names(self.calls)
        made: dict[Call, tuple[list[Any], Any]] = {}
        shared: dict[int, Any] = {}  # by the original layer
        for call in self.calls:
            layer = shared.get(id(call.layer)) or layer_of(call)
            if call.layer is not None and call.layer.weights:
                shared[id(call.layer)] = layer
            if not call.inputs:
                own = [layer.output] if layer is not call.layer else call.outputs
                made[call] = own, layer
                continue
            args, kwargs = _map_tensors(
                lambda tensor: made[tensor.call][0][tensor.index], (call.args, call.kwargs)
            )
            made[call] = tf.nest.flatten(layer(*args, **kwargs)), layer
        return made

    def _add_input(self, tensor: Any) -> Tensor:
        layer = tensor._keras_history.layer
        call = Call(type(layer), layer.get_config(), layer, [tensor])
        self.calls.append(call)
        return Tensor(call)

    def _expand(
        self, model: Any, sources: list[Tensor], path: tuple[str, ...], training: bool | None
    ) -> list[Tensor]:
        """Adds the calls of a model; returns its outputs."""
        tensors = {_key(own): source for own, source in zip(model.inputs, sources, strict=True)}
        for node in _nodes(model):
            inner = node.call_kwargs.get("training")
            outputs = self._add(node, tensors, path, training if inner is None else inner)
            for own, new in zip(tf.nest.flatten(node.outputs), outputs, strict=True):
                tensors[_key(own)] = new
        return [tensors[_key(own)] for own in model.outputs]

    def _add(
        self, node: Any, tensors: dict[Any, Tensor], path: tuple[str, ...], training: bool | None
    ) -> list[Tensor]:
        layer = node.layer
        if isinstance(layer, tf_keras.Model):
            check_graph(layer)
            arguments = layer._flatten_to_reference_inputs(node.call_args[0])
            sources = [tensors[_key(tensor)] for tensor in arguments]
            return self._expand(layer, sources, (*path, layer.name), training)
        self._check_called_once(layer)
        args, kwargs = tf.nest.map_structure(
            lambda value: tensors[_key(value)] if is_symbolic(value) else value,
            (node.call_args, node.call_kwargs),
        )
        if training is not None and layer._expects_training_arg:
            kwargs = {**kwargs, "training": training}
        outputs = tf.nest.flatten(node.outputs)
        call = Call(type(layer), _config(layer), layer, outputs, args, kwargs, path)
        self.calls.append(call)
        return [Tensor(call, index) for index in range(len(outputs))]

    def _check_called_once(self, layer: Any) -> None:
        if id(layer) in self._called and layer.weights and not self._allow_shared:
            raise UsageError(
                "model",
                f"layer {layer.name}, which is called more than once",
                "layers with weights that are called once",
                "make a layer of its own for each call",
            )
        self._called.add(id(layer))


def check_graph(model: Any) -> None:
    """Checks that the layers of a model and their connections are known.

    Raises:
        UsageError: it is an unbuilt Sequential model, or a subclass with a `call` of its own.
    """
    if getattr(model, "_is_graph_network", False):
        return
    if isinstance(model, tf_keras.Sequential):
        raise UsageError(
            "model",
            f"Sequential model {model.name} without an input shape",
            "a built model",
            "call model.build((None, height, width, channels)) first",
        )
    raise UsageError(
        "model",
        f"{type(model).__qualname__}, a subclass with a call() of its own",
        "a functional or Sequential model of tf_keras",
        "write it in functional form: tf_keras.Model(inputs, outputs)",
    )


def is_symbolic(value: Any) -> bool:
    """Whether a value is a symbolic tensor of a layer."""
    return hasattr(value, "_keras_history")


def _key(tensor: Any) -> tuple[int, int, int]:
    history = tensor._keras_history
    return id(history.layer), history.node_index, history.tensor_index


def _nodes(model: Any) -> Iterator[Any]:
    """Every call inside a model but those of its inputs, in execution order."""
    for depth in sorted((depth for depth in model._nodes_by_depth if depth >= 0), reverse=True):
        yield from (node for node in model._nodes_by_depth[depth] if not node.is_input)


def _map_tensors(function: Callable[[Tensor], Any], values: Any) -> Any:
    return tf.nest.map_structure(
        lambda value: function(value) if isinstance(value, Tensor) else value, values
    )


def _config(layer: Any) -> dict[str, Any]:
    try:
        config: dict[str, Any] = layer.get_config()
    except NotImplementedError:
        raise UsageError(
            "model",
            f"layer {layer.name} of class {type(layer).__qualname__}",
            "layers that can be made again",
            "give the class a get_config()",
        ) from None
    return config


def _new_layer(call: Call, dtype: str | None) -> Any:
    config = {**call.config, "name": call.name}
    if dtype is not None and call.kind is not tf_keras.layers.InputLayer:
        config["dtype"] = dtype
    try:
        return call.kind.from_config(config)  # type: ignore[attr-defined]
    except (TypeError, ValueError) as error:
        raise UsageError(
            "model",
            f"layer {call.name} of class {call.kind.__qualname__}",
            f"layers that can be made again from their configuration ({error})",
            "register custom functions: tf_keras.utils.register_keras_serializable()",
        ) from None


def _assign_names(calls: Iterable[Call]) -> None:
    """Gives every call a name of its own.

    A name stays where only one layer has it. Of several, that outside all nested models keeps it;
    the others have the name of their nested model before their own. A slash, which separates the
    names of layers in a TFLite file, becomes an underscore.
    """
    calls = list(calls)
    own = [call for call in calls if _own_name(call)]
    count = collections.Counter(_own_name(call) for call in own)
    taken: set[str] = set()
    prefixed = []
    for call in own:
        name = _own_name(call)
        if name not in taken and (count[name] == 1 or not call.path):
            call.name = _unique(name, taken)
        else:
            prefixed.append(call)
    for call in prefixed:
        call.name = _unique("_".join((*call.path[-1:], _own_name(call))), taken)
    for call in calls:
        if not _own_name(call):
            call.name = _unique(f"{_original_before(call).name}_{call.suffix}", taken)


def _own_name(call: Call) -> str:
    """The name that a call has by itself; empty if it is named after another."""
    name = call.own_name if call.layer is None else str(call.layer.name)
    return name.replace(SLASH, "_")


def _original_before(call: Call) -> Call:
    while not _own_name(call):
        call = call.inputs[0].call
    return call


def _unique(name: str, taken: set[str]) -> str:
    number, candidate = 0, name
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate


@contextlib.contextmanager
def _scope_of(model: Any) -> Iterator[None]:
    """The strategy scope that the model was made in, unless one is open."""
    strategy = model.distribute_strategy
    if tf.distribute.has_strategy() or not isinstance(strategy, tf.distribute.Strategy):
        yield
        return
    with strategy.scope():
        yield
