"""The sources of each recorded activation, read off the traced forward pass.

A fork declares nothing: `self.record(name, x)` names a place in the computation. The sources of x
are the recorded activations, tensors and forward scales that the model computes it from, without
passing another recorded place. For a stack of layers they are those of its first layer, which reads
what stands before the stack.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from mujax.params import named_leaves
from mujax.training.run import Run
from mujax.training.steps import abstract_state, make_train_fns


@dataclasses.dataclass(frozen=True)
class Origin:
    """The place of an activation in the computation.

    activations, tensors, scales: its sources, by name.
    readouts: the tensors that it is a product with, if only factors, biases and masks follow the
      product.
    summed: size of the axis over which activations were multiplied by activations, as queries by
      keys, if only factors and masks follow; else None.
    is_stacked: whether its first axis counts the layers of a scan.
    """

    activations: frozenset[str] = frozenset()
    tensors: frozenset[str] = frozenset()
    scales: frozenset[str] = frozenset()
    readouts: frozenset[str] = frozenset()
    summed: int | None = None
    is_stacked: bool = False


@dataclasses.dataclass(frozen=True)
class _Value:
    """An array of the forward pass: its sources and the last products on the paths to it.

    sources: (kind, name) each; constants have none.
    products: per path, the name of a tensor or the size of an axis; OTHER for a path that does not
      end in a product. Constants have none.
    """

    sources: frozenset[tuple[str, str]] = frozenset()
    products: frozenset[str | int] = frozenset()

    @property
    def is_data(self) -> bool:
        return any(kind in ("activation", "tokens") for kind, _ in self.sources)

    def names(self, kind: str) -> frozenset[str]:
        return frozenset(name for k, name in self.sources if k == kind)


OTHER = ""
# After these a product still counts as one: factors, biases, masks, other shapes, and a soft cap
LINEAR = frozenset(
    "add sub mul div neg add_any convert_element_type reshape transpose squeeze broadcast_in_dim "
    "expand_dims copy "
    "slice dynamic_slice dynamic_update_slice concatenate pad rev select_n reduce_sum "
    "reduce_precision stop_gradient "
    "sharding_constraint optimization_barrier tanh".split()
)


def origins(run: Run) -> dict[str, Origin]:
    """Returns {recorded name: Origin} in the order of the forward pass; compiles nothing."""
    forward = make_train_fns(run.program).activations
    rows = jax.ShapeDtypeStruct((2, run.program.seq_len + 1), jnp.int32)
    params = abstract_state(run.program).params
    closed, recorded = jax.make_jaxpr(forward, return_shape=True)(
        params, rows, run.hps, run.scalings
    )
    values = [_Value(frozenset([("tensor", name)])) for name in named_leaves(params)]
    values.append(_Value(frozenset([("tokens", "")]), frozenset([OTHER])))
    scales = {
        f"{name}_scale": _Value(frozenset([("scale", f"{name} scale")]))
        for name in run.scales._fields
    }
    values += [scales.get(name, _Value()) for name in run.hps._fields]
    values += [_Value()] * (len(closed.jaxpr.invars) - len(values))
    found: dict[str, Origin] = {}
    _walk(
        closed.jaxpr,
        values,
        [_Record([name], True) for name in named_leaves(recorded)],
        False,
        found,
    )
    return found


class _Record(NamedTuple):
    """The names under which an output is recorded, and whether recording is its only use."""

    names: Sequence[str] = ()
    is_alone: bool = False


def _walk(
    jaxpr: Jaxpr, values: Sequence[_Value], records: Sequence[_Record], is_stacked: bool, found
) -> list[_Value]:
    """Returns the values of the outputs; adds to `found` an Origin for each recorded name."""
    known: dict[Any, _Value] = {}
    recorded, alone = _places(jaxpr, records)

    def write(variables, values):
        for variable, value in zip(variables, values, strict=True):
            for name in recorded.get(variable, ()):
                found[name] = _origin(value, is_stacked)
                value = _Value(frozenset([("activation", name)]), frozenset([OTHER]))
            known[variable] = value

    def read(variable) -> _Value:
        return _Value() if isinstance(variable, Literal) else known[variable]

    write(jaxpr.constvars, [_Value()] * len(jaxpr.constvars))
    write(jaxpr.invars, values)
    for eqn in jaxpr.eqns:
        operands = [read(variable) for variable in eqn.invars]
        inner = _inner(eqn)
        if inner is None:
            write(eqn.outvars, [_result(eqn, operands)] * len(eqn.outvars))
        else:
            within = [
                _Record(recorded.pop(variable, ()), variable in alone) for variable in eqn.outvars
            ]
            results = _walk(
                inner, operands, within, is_stacked or eqn.primitive.name == "scan", found
            )
            write(eqn.outvars, results)
    return [read(variable) for variable in jaxpr.outvars]


def _places(jaxpr: Jaxpr, records: Sequence[_Record]) -> tuple[dict[Any, list[str]], set]:
    """Returns ({variable: its recorded names}, variables used for records alone).

    A value made for the record alone, such as a copy in another type, counts as recorded where it
    was taken, since the model goes on from there.
    """
    used = {variable for eqn in jaxpr.eqns for variable in _variables(eqn)}
    places: dict[Any, list[str]] = {}
    alone = set()
    for variable, record in zip(jaxpr.outvars, records, strict=True):
        if record.names and not isinstance(variable, Literal):
            places.setdefault(variable, []).extend(record.names)
            if record.is_alone and variable not in used:
                alone.add(variable)
    for eqn in reversed(jaxpr.eqns):
        operands = _variables(eqn)
        if (
            len(eqn.outvars) == len(operands) == 1
            and eqn.outvars[0] in alone
            and _inner(eqn) is None
        ):
            places.setdefault(operands[0], []).extend(places.pop(eqn.outvars[0]))
    return places, alone


def _variables(eqn: JaxprEqn) -> list:
    return [variable for variable in eqn.invars if not isinstance(variable, Literal)]


def _inner(eqn: JaxprEqn) -> Jaxpr | None:
    """Returns the jaxpr that an equation calls, or one iteration of a scan; None if not one."""
    inner = [getattr(value, "jaxpr", value) for value in eqn.params.values()]
    inner = [value for value in inner if isinstance(value, Jaxpr)]
    if (
        len(inner) != 1
        or len(inner[0].invars) != len(eqn.invars)
        or len(inner[0].outvars) != len(eqn.outvars)
    ):
        return None
    return inner[0]


def _result(eqn: JaxprEqn, operands: Sequence[_Value]) -> _Value:
    sources = frozenset().union(*(value.sources for value in operands))
    data = [value for value in operands if value.is_data]
    if not data:
        return _Value(sources)
    if eqn.primitive.name == "dot_general" and len(data) == 2:
        (axes, _), _ = eqn.params["dimension_numbers"]
        shape = cast(Any, eqn.invars[0].aval).shape
        products = frozenset([math.prod(shape[axis] for axis in axes)])
    elif eqn.primitive.name in ("dot_general", "conv_general_dilated") and len(data) == 1:
        (other,) = (value for value in operands if not value.is_data)
        products = other.names("tensor") or data[0].products
    elif eqn.primitive.name in LINEAR and not (
        eqn.primitive.name in ("mul", "div") and len(data) == 2
    ):
        products = frozenset().union(*(value.products for value in data))
    else:
        products = frozenset([OTHER])
    return _Value(sources, products)


def _origin(value: _Value, is_stacked: bool) -> Origin:
    products = frozenset() if OTHER in value.products else value.products
    sizes = [product for product in products if isinstance(product, int)]
    return Origin(
        activations=value.names("activation"),
        tensors=value.names("tensor"),
        scales=value.names("scale"),
        readouts=frozenset(product for product in products if isinstance(product, str)),
        summed=sizes[0] if sizes and len(products) == 1 else None,
        is_stacked=is_stacked,
    )
