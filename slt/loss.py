"""The contract of a loss function: what it may return, and what is checked before any sampling starts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from slt.arguments import WeightsError
from slt.data import Data, batch_size_of, map_tensors
from slt.parameters import SIXTEEN_BITS, SampledParameters
from slt.shards import reshard

LossFn = Callable[..., Tensor]

FEW = 8  # samples of which it is asked whether a loss is their mean
# of the loss, by which that of a batch and the mean of its samples may differ: padded sequences weigh by their tokens
UNEVEN = 0.1


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


class LossReport(NamedTuple):
    """What one evaluation at the anchor tells about a loss function.

    Attributes:
        random: Whether a second evaluation at the same weights gave another value.
        values: The two values, in nats.
        uneven: Of a few samples the loss together, and the mean of their losses one by one, where the two differ by
            more than a tenth; None elsewhere.
    """

    random: bool
    values: tuple[float, float]
    uneven: tuple[float, float] | None = None


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
        ValueError: It is not 0-d or ``(batch,)``, is a sum over samples, or does not depend on the sampled parameters
            through ``model``; or the model does not take the data's dtype.
        WeightsError: It is not finite at the anchor.
        RuntimeError: What the loss raises itself.
    """
    batch = None if data is None else data.first_batch()
    arguments = (model,) if data is None else (model, batch)
    _check_form(loss_fn, arguments)
    sharded = sampled.shards is not None
    with torch.set_grad_enabled(not sharded):  # gradients of shards are collected by hooks, and not to be asked for
        try:
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
    uneven = None
    if not sharded:
        _check_gradients(arguments, loss_fn, loss, sampled)
        if loss.ndim == 0 and batch is not None:
            uneven = _check_mean(model, batch, loss_fn)
    with torch.no_grad():
        again = loss_fn(*arguments)
    reshard(model)
    values = (float(loss.detach().double().mean()), float(again.detach().double().mean()))
    # the second pass differs in rounding where kernels differ under no_grad; chance moves it far more than that
    random = abs(values[0] - values[1]) > 1e-5 * max(1.0, abs(values[0]))
    return LossReport(random, values, None if random else uneven)


def _check_mean(model: nn.Module, batch: Any, loss_fn: LossFn) -> tuple[float, float] | None:
    """Refuse a loss that samples given twice double, a sum; of others, what differs from the mean over samples."""

    def of_samples(first: int, last: int, copies: int = 1) -> float:
        chosen = map_tensors(lambda tensor: torch.cat([tensor[first:last]] * copies) if tensor.ndim else tensor, batch)
        return float(loss_fn(model, chosen))

    size = min(FEW, batch_size_of(batch))
    with torch.no_grad():
        try:
            once, twice = of_samples(0, size), of_samples(0, size, 2)
        except Exception:  # a loss that takes batches of one size alone cannot be asked
            return None
        if once != 0 and abs(twice - 2 * once) <= 1e-3 * abs(once):
            raise ValueError(
                f"loss_fn: samples that are given twice have twice the loss, {twice:.6g} instead of {once:.6g}; "
                "expected the mean over a batch. Take .mean() in place of .sum(), or return one loss per sample, "
                "(batch,)."
            )
        try:
            mean = sum(of_samples(one, one + 1) for one in range(size)) / size
        except Exception:  # nor one that takes no single sample
            return None
    return (once, mean) if abs(once - mean) > UNEVEN * max(abs(once), abs(mean)) else None


def _check_form(loss_fn: LossFn, arguments: tuple[Any, ...]) -> None:
    """Refuse a loss of outputs and targets, and one that does not take a module and a batch."""
    expected = "loss_fn(model, batch)" if len(arguments) > 1 else "loss_fn(model)"
    example = "lambda model, batch: torch.nn.functional.mse_loss(model(batch[0]), batch[1])"
    advice = f"expected {expected}, which calls the model itself, such as {example}."
    if isinstance(loss_fn, nn.modules.loss._Loss):
        raise TypeError(f"loss_fn: {type(loss_fn).__name__} takes outputs and targets; {advice}")
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
    reached = [gradient is not None for gradient in gradients]
    del gradients  # a model may fill the device, and the check has gradients of its own
    _check_references(arguments, loss_fn, sampled, reached)


def _check_references(
    arguments: tuple[Any, ...], loss_fn: LossFn, sampled: SampledParameters, reached: Sequence[bool]
) -> None:
    """Refuse a weight that the forward pass reads from elsewhere than the module: it would never move."""
    leaves = [nn.Parameter(tensor.detach()) for tensor in sampled.tensors()]
    with sampled.borrowed(), torch.enable_grad():
        sampled.bind(leaves)
        swapped = torch.autograd.grad(loss_fn(*arguments).mean(), leaves, allow_unused=True)
    stale = [name for name, own, other in zip(sampled.names, reached, swapped, strict=True) if own and other is None]
    if stale:
        raise ValueError(
            f"parameters: the forward pass reads {', '.join(stale[:3])} from another reference than the module's own "
            "parameter (a list or closure, say), so it cannot be sampled. Read it from the module, or leave it out."
        )
