"""The contract of a loss function: what it may return, and what is checked before any sampling starts."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from slt.arguments import WeightsError
from slt.data import Data, batch_size_of, map_tensors, tensors_of
from slt.displacement import displaced, weights_at
from slt.mean_of_samples import check_mean
from slt.parameters import SIXTEEN_BITS, SampledParameters
from slt.shards import reshard

LossFn = Callable[..., Tensor]

REPEATS, FEW = 32, 2  # evaluations that must agree, and samples of which they are
ALIKE = 0.05  # of a gradient, by which that through weights of the module and that through copies of them may differ


def mean_loss(loss_fn: LossFn, model: nn.Module, batch: Any, has_data: bool) -> Tensor:
    """The mean loss of a batch, 0-d, differentiable.

    Args:
        loss_fn: ``(model, batch) →`` the mean loss, 0-d, or one loss per sample, ``(batch,)``; ``model → L`` where
            there is no data. In nats.
        model: The module.
        batch: The batch, passed on as it is.
        has_data: Whether there is a batch to pass.

    Returns:
        A 0-d tensor.
    """
    loss = loss_fn(model, batch) if has_data else loss_fn(model)
    if loss.dtype in SIXTEEN_BITS:  # a mean over samples keeps what each of them lost
        loss = loss.float()
    return loss if loss.ndim == 0 else loss.mean()


class DifferentiatesInsideError(RuntimeError):
    """A loss that takes gradients itself, such as of its outputs by its inputs, was called where there are none."""


def with_gradients_inside(loss_fn: LossFn) -> LossFn:
    """The same loss, which can take gradients itself wherever it is called.

    Args:
        loss_fn: A loss with, say, a gradient penalty, or the residual of a differential equation.

    Returns:
        A loss whose value is detached where no gradients are asked for.
    """

    @functools.wraps(loss_fn)
    def differentiable(*arguments: Any) -> Tensor:
        with torch.enable_grad():
            loss = loss_fn(*arguments)
        return loss if torch.is_grad_enabled() else loss.detach()

    return differentiable


def differ(one: float, other: float) -> bool:
    """Whether two losses of the same samples at the same weights differ by more than rounding, which chance does.

    Args:
        one: The first, in nats.
        other: The second; kernels may round otherwise where there is no gradient to take.

    Returns:
        Whether they do.
    """
    return abs(one - other) > 1e-5 * max(1.0, abs(one))


class LossReport(NamedTuple):
    """What one evaluation at the anchor tells about a loss function.

    Attributes:
        random: Whether a second evaluation at the same weights gave another value, at the anchor or aside of it.
        values: The two values, in nats.
        at_anchor: The first value at the anchor, in nats.
        uneven: Of a few samples the loss together, and the mean of their losses one by one, where the first is no
            mean; None elsewhere.
        dtype: Of the loss as it was returned.
        batch: Of which these are: the first of the data, a copy; None where there is none.
    """

    random: bool
    values: tuple[float, float]
    at_anchor: float
    uneven: tuple[float, float] | None
    dtype: torch.dtype
    batch: Any


def inspect_loss(model: nn.Module, data: Data | None, loss_fn: LossFn, sampled: SampledParameters) -> LossReport:
    """Evaluate the loss at the module's own weights and check that it can be sampled.

    Args:
        model: The module, in the mode in which it will be sampled.
        data: Its first batch is used.
        loss_fn: The loss.
        sampled: The sampled parameters.

    Returns:
        What was found.

    Raises:
        TypeError: ``loss_fn`` is a loss of outputs and targets, or takes other arguments; or the loss is not a tensor.
        ValueError: It is not 0-d or ``(batch,)``, is a sum over samples, does not depend on the sampled parameters
            through ``model``, or changes the batch or weights; or the model does not take the data's dtype.
        WeightsError: It is not finite at the anchor.
        DifferentiatesInsideError: The loss takes gradients itself; see :func:`with_gradients_inside`.
        RuntimeError: What the loss raises itself.
    """
    # a copy: a loss that changes its batch in place is not let at the user's
    batch = None if data is None else map_tensors(torch.clone, data.first_batch())
    arguments = (model,) if data is None else (model, batch)
    _check_form(loss_fn, arguments)
    unchanged = [(tensor, tensor._version) for tensor in tensors_of(batch)]
    sharded = sampled.shards is not None
    with torch.set_grad_enabled(not sharded):  # gradients of shards are collected by hooks, and not to be asked for
        try:
            with _unchanged_weights(model, sampled):
                loss = loss_fn(*arguments)
        except RuntimeError as error:
            if "dtype" not in str(error):
                raise
            raise ValueError(
                f"data: {str(error).splitlines()[0]}. The weights are of {str(sampled.dtype).removeprefix('torch.')}; "
                "expected data, and tensors inside loss_fn, that the model takes: x.float(), or model.double()."
            ) from error
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"loss_fn: returned {type(loss).__name__}; expected a tensor, the mean loss (0-d) or one loss per sample "
            "(batch,). A Hugging Face output has it as .loss."
        )
    changed = [tuple(tensor.shape) for tensor, version in unchanged if tensor._version != version]
    if changed:
        raise ValueError(
            f"loss_fn: changes a tensor of its batch in place, of shape {changed[0]}, so that the next evaluation has "
            "other data. Compute a new one (x / 2 in place of x.div_(2)), or clone it first."
        )
    size = None if batch is None else batch_size_of(batch)
    if loss.ndim > 0 and (size is None or tuple(loss.shape) != (size,)):
        expected = "a 0-d tensor" if size is None else f"a 0-d tensor or one loss per sample, ({size},)"
        raise ValueError(
            f"loss_fn: returned shape {tuple(loss.shape)}; expected {expected}. Take .mean() over what is left, for "
            "instance over tokens or outputs."
        )
    if not loss.is_floating_point():
        raise ValueError(f"loss_fn: returned dtype {loss.dtype}; expected a floating-point loss in nats.")
    if not bool(torch.isfinite(loss).all()):
        raise WeightsError(
            f"loss_fn: {int((~torch.isfinite(loss)).sum())} of {loss.numel()} losses are not finite at the anchor. "
            "Check the checkpoint and the data for NaN or overflow."
        )
    with torch.no_grad():
        try:
            again = loss_fn(*arguments)
        except RuntimeError as error:
            if sharded or "does not require grad" not in str(error):
                raise
            raise DifferentiatesInsideError(str(error)) from error
    uneven = None
    if not sharded:
        _check_gradients(arguments, loss_fn, loss, sampled)
        if batch is not None:
            uneven = check_mean(model, batch, loss_fn, sampled)
    reshard(model)
    values = (value_of(loss), value_of(again))
    at_anchor, random = values[0], differ(*values)
    if not random and not sharded:
        unlike = _unlike(arguments, loss_fn, sampled)
        random, values = unlike is not None, unlike or values
    return LossReport(random, values, at_anchor, None if random else uneven, loss.dtype, batch)


def value_of(loss: Tensor) -> float:
    """The mean of losses of any shape, in float64.

    Args:
        loss: 0-d or ``(batch,)``.

    Returns:
        In nats.
    """
    return float(loss.detach().double().mean())


@torch.no_grad()
def _unlike(arguments: tuple[Any, ...], loss_fn: LossFn, sampled: SampledParameters) -> tuple[float, float] | None:
    """Two losses of the same batch at the same weights that differ; None where none of many do.

    At the anchor, and at weights aside of it, where a loss that is zero there shows whether chance multiplies it. Of
    two samples, which cost little: chance that strikes one call in thirty, as when a whole batch is augmented or not,
    is seen in six of seven runs.

    Args:
        arguments: Of the loss.
        loss_fn: The loss.
        sampled: The sampled parameters.

    Returns:
        The losses, in nats.
    """
    few = tuple(
        each if place == 0 else map_tensors(lambda tensor: tensor[:FEW] if tensor.ndim else tensor, each)
        for place, each in enumerate(arguments)
    )
    for given, places in ((few, (None, displaced(sampled))), (arguments, (displaced(sampled),))):
        for place in places:
            try:
                with nullcontext() if place is None else weights_at(sampled, place):
                    first = value_of(loss_fn(*given))
                    for _ in range(REPEATS if given is few else 1):
                        again = value_of(loss_fn(*given))
                        if differ(first, again):
                            return first, again
            except Exception:  # a loss may refuse so few samples, or weights that no chain comes to
                continue
    return None


def _check_form(loss_fn: LossFn, arguments: tuple[Any, ...]) -> None:
    """Refuse a loss of outputs and targets, and one that does not take a module and a batch."""
    expected = "loss_fn(model, batch)" if len(arguments) > 1 else "loss_fn(model)"
    example = "lambda model, batch: torch.nn.functional.mse_loss(model(batch[0]), batch[1])"
    advice = f"expected {expected}, which calls the model itself, such as {example}."
    if not callable(loss_fn):
        raise TypeError(f"loss_fn: {loss_fn!r} is no function; {advice}")
    of_outputs = getattr(loss_fn, "__module__", "") == nn.functional.__name__
    if of_outputs or isinstance(loss_fn, nn.modules.loss._Loss):
        name = getattr(loss_fn, "__name__", type(loss_fn).__name__)
        raise TypeError(f"loss_fn: {name} takes outputs and targets; {advice}")
    try:
        form = inspect.signature(loss_fn)
    except (TypeError, ValueError):  # of some built-in functions none is known
        return
    try:
        form.bind(*arguments)
    except TypeError as error:
        raise TypeError(f"loss_fn: does not take {len(arguments)} arguments ({error}); {advice}") from None


def _check_gradients(arguments: tuple[Any, ...], loss_fn: LossFn, loss: Tensor, sampled: SampledParameters) -> None:
    """Refuse a loss that does not depend on the sampled parameters, or not through the module alone."""
    if not loss.requires_grad:
        raise ValueError(
            "loss_fn: the loss has no gradient; expected it to depend on the sampled parameters through the model "
            "argument. Remove torch.no_grad(), .detach() and .item() from it."
        )
    gradients = torch.autograd.grad(loss.mean(), [*sampled.tensors()], allow_unused=True)
    if all(gradient is None for gradient in gradients):
        raise ValueError(
            f"loss_fn: the loss does not depend on the sampled parameters ({', '.join(sampled.names[:3])}, …). It must "
            "reach them through the model that it is given, not through another reference."
        )
    # lengths: a model may fill the device, and the check has gradients of its own
    lengths = [None if gradient is None else float(gradient.norm()) for gradient in gradients]
    del gradients
    _check_references(arguments, loss_fn, sampled, float(loss.detach().double().mean()), lengths)


def _check_references(
    arguments: tuple[Any, ...],
    loss_fn: LossFn,
    sampled: SampledParameters,
    value: float,
    lengths: Sequence[float | None],
) -> None:
    """Refuse a weight that the forward pass reads from elsewhere too: what is read there would never move."""
    leaves = [nn.Parameter(tensor.detach()) for tensor in sampled.tensors()]
    with sampled.borrowed(), torch.enable_grad():
        sampled.bind(leaves)
        again = loss_fn(*arguments).mean()
        swapped = torch.autograd.grad(again, leaves, allow_unused=True)
    # of a loss that is random, gradients differ by themselves
    same = not differ(value, float(again.detach().double()))
    least = 1e-3 * max((length for length in lengths if length is not None), default=0.0)

    def stale(own: float | None, other: Tensor | None) -> bool:
        if own is None or other is None:
            return own is not None
        length = float(other.norm())
        return same and abs(length - own) > max(ALIKE * max(own, length), least)

    read = [name for name, own, other in zip(sampled.names, lengths, swapped, strict=True) if stale(own, other)]
    if read:
        raise ValueError(
            f"parameters: the forward pass reads {', '.join(read[:3])} from another reference than the module's own "
            "parameter (a list or closure, say), so it cannot be sampled. Read it from the module, or leave it out."
        )


@contextmanager
def _unchanged_weights(model: nn.Module, sampled: SampledParameters) -> Iterator[None]:
    """A context at whose end weights that a forward pass has changed in place are as they were, and it is refused."""
    versions = [(name, parameter, parameter._version) for name, parameter in model.named_parameters()]
    anchor = sampled.flatten() if sampled.shards is None else None
    yield
    changed = [name for name, parameter, version in versions if parameter._version != version]
    if not changed or anchor is None:
        return
    with torch.no_grad():
        for parameter, value in zip(sampled.tensors(), sampled.views(anchor), strict=True):
            parameter.copy_(value)
    raise ValueError(
        f"model: its forward pass changes {', '.join(changed[:3])} in place (max_norm of an embedding, or a constraint "
        "under no_grad, say), so that what is sampled is not where the sampler put it. Compute with a changed copy: "
        "weight.clamp(min=0), or a parametrization."
    )
