"""The matrix products and convolutions of a program, found in its trace and run alone.

They have the same shapes and order as in the program, with nothing in between: a stage cannot be
faster.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

POOL_BYTES = (
    512 * 2**20
)  # of distinct weights: more than caches hold, so that all are read from memory
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product or convolution: its shapes, dtypes and options.

    Attributes:
      left, right: operand shapes; of a matrix product (batch, M, K) and (batch, K, N), without a
        batch of 1; of a convolution as traced.
      dtypes: of left and right operand.
      options: keyword arguments of the jax function that runs it, as sorted pairs.
      convolution: whether it is one; else a matrix product.
      flops: 2 per multiply-add.
    """

    left: Shape
    right: Shape
    dtypes: tuple[str, str]
    options: tuple[tuple[str, Any], ...]
    convolution: bool
    flops: int

    @property
    def own_right(self) -> bool:
        """Whether the right operand is a weight, in other memory each time; else an activation."""
        return self.convolution or len(self.right) == 2

    def __call__(self, left: jax.Array, right: jax.Array) -> jax.Array:
        options = dict(self.options)
        if self.convolution:
            return jax.lax.conv_general_dilated(left, right, **options)
        batch = tuple(range(len(self.left) - 2))
        contracted = ((len(batch) + 1,), (len(batch),))
        return jax.lax.dot_general(left, right, (contracted, (batch, batch)), **options)


@dataclasses.dataclass(frozen=True)
class Group:
    """Consecutive products, and how often a loop runs them."""

    products: tuple[Product, ...]
    times: int

    @property
    def flops(self) -> int:
        return self.times * sum(product.flops for product in self.products)


def products_of(function: Callable[..., Any], *args: Any) -> tuple[Group, ...]:
    """Groups of products, in order, that `function` runs on arguments of these shapes.

    Attention kernels (splash, cuDNN) have none: their time counts as time between products.
    """
    return tuple(_groups(jax.make_jaxpr(function)(*args).jaxpr))


def total_flops(groups: tuple[Group, ...]) -> int:
    return sum(group.flops for group in groups)


def _groups(jaxpr: Any) -> Iterator[Group]:
    """Straight code becomes one group; the body of a loop becomes another, with its iterations."""
    straight: list[Product] = []
    platforms: tuple = ()
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name == 'dot_general':
            straight.append(_dot(eqn))
        elif name == 'conv_general_dilated':
            straight.append(_convolution(eqn))
        elif name == 'platform_index':
            platforms = eqn.params['platforms']
        elif (
            name != 'pallas_call'
        ):  # the products of a kernel are of blocks, most of which it may skip
            inner = _inner(eqn, platforms)
            times = eqn.params['length'] if name == 'scan' else 1
            for group in (g for body in inner for g in _groups(body)):
                if times == 1 and group.times == 1:
                    straight += group.products
                    continue
                if straight:
                    yield Group(tuple(straight), 1)
                    straight = []
                yield Group(group.products, times * group.times)
    if straight:
        yield Group(tuple(straight), 1)


def _inner(eqn: Any, platforms: tuple) -> list[Any]:
    """The jaxprs that an equation runs; of branches by platform, the one of this platform."""
    if eqn.primitive.name == 'cond' and platforms:
        here = jax.default_backend()
        chosen = [i for i, names in enumerate(platforms) if names is None or here in names]
        return [eqn.params['branches'][chosen[0]].jaxpr]
    values = [v for value in eqn.params.values() for v in _as_list(value)]
    inner = [getattr(v, 'jaxpr', v) for v in values if hasattr(v, 'eqns') or hasattr(v, 'jaxpr')]
    if eqn.primitive.name in ('cond', 'while') and any(list(_groups(body)) for body in inner):
        raise ValueError(
            f'products in a {eqn.primitive.name}, whose number of runs the trace does not show'
        )
    return inner


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (tuple, list)) else [value]


def _dot(eqn: Any) -> Product:
    """A dot_general as batches of plain matrices."""
    left, right = (v.aval for v in eqn.invars)
    (contract_l, contract_r), (batch_l, batch_r) = eqn.params['dimension_numbers']
    batch = math.prod(left.shape[i] for i in batch_l)
    k = math.prod(left.shape[i] for i in contract_l)
    m = math.prod(left.shape) // (batch * k)
    n = math.prod(right.shape) // (batch * k)
    lead = (batch,) if batch_l and batch > 1 else ()
    options = {key: eqn.params[key] for key in ('precision', 'preferred_element_type')}
    return Product(
        (*lead, m, k),
        (*lead, k, n),
        (str(left.dtype), str(right.dtype)),
        tuple(sorted(options.items())),
        False,
        2 * batch * m * n * k,
    )


def _convolution(eqn: Any) -> Product:
    left, right = (v.aval for v in eqn.invars)
    layout = eqn.params['dimension_numbers']
    taps = math.prod(right.shape) // right.shape[layout.rhs_spec[0]]  # of one output channel
    return Product(
        left.shape,
        right.shape,
        (str(left.dtype), str(right.dtype)),
        tuple(sorted(eqn.params.items())),
        True,
        2 * math.prod(eqn.outvars[0].aval.shape) * taps,
    )


class BareProducts:
    """Runs groups of products on random arrays; a call returns an array to wait for."""

    def __init__(self, groups: tuple[Group, ...]):
        self._operands = _Operands()
        self._calls = [(jax.jit(_runner(g.products)), self._arrays(g), g.times) for g in groups]

    def __call__(self) -> jax.Array:
        done = jnp.zeros(())
        for run, repeats, times in self._calls:
            for i in range(times):
                done = run(done, np.int32(0), *repeats[i % len(repeats)])
        return done

    def _arrays(self, group: Group) -> list[tuple[list[jax.Array], list[jax.Array]]]:
        """Operands of each repetition: the same activations, other weights."""
        lefts = [self._operands.shared(p.left, p.dtypes[0], 'left') for p in group.products]
        repeats = []
        for _ in range(group.times):
            rights = [
                self._operands.own(p.right, p.dtypes[1])
                if p.own_right
                else self._operands.shared(p.right, p.dtypes[1], f'right {i}')
                for i, p in enumerate(group.products)
            ]
            repeats.append((lefts, rights))
        return repeats


def _runner(products: tuple[Product, ...]) -> Callable[..., jax.Array]:
    """A program of these products. It reads a number of each result, so that none is left out."""

    def run(done, zero, lefts, rights):
        for product, left, right in zip(products, lefts, rights, strict=True):
            out = product(left, right)
            # The index is unknown to the compiler, which else would compute that number alone.
            one = jax.lax.dynamic_slice(out, (zero,) * out.ndim, (1,) * out.ndim)
            done = done + one.reshape(()).astype(jnp.float32)
        return done

    return run


class _Operands:
    """Random arrays by shape: shared ones, and a pool of distinct ones."""

    def __init__(self):
        self._block = np.random.default_rng(0).standard_normal(2**20, dtype=np.float32)
        self._shared: dict[tuple, jax.Array] = {}
        self._pool: dict[tuple, list[jax.Array]] = {}
        self._taken: dict[tuple, int] = {}
        self._bytes = 0

    def shared(self, shape: Shape, dtype: str, role: str) -> jax.Array:
        key = (shape, dtype, role)
        if key not in self._shared:
            self._shared[key] = self._new(shape, dtype)
        return self._shared[key]

    def own(self, shape: Shape, dtype: str) -> jax.Array:
        """An array of the pool that was not used recently."""
        pool = self._pool.setdefault((shape, dtype), [])
        taken = self._taken.get((shape, dtype), 0)
        self._taken[shape, dtype] = taken + 1
        if self._bytes < POOL_BYTES or not pool:
            pool.append(self._new(shape, dtype))
            self._bytes += pool[-1].nbytes
            return pool[-1]
        return pool[taken % len(pool)]

    def _new(self, shape: Shape, dtype: str) -> jax.Array:
        return jnp.asarray(np.resize(self._block, shape), dtype)
