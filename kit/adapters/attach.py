"""Place an adapter on a loaded model: a new one to train, or a finished one to measure.

`attach_lora` makes PEFT's layers. `mount` adds finished deltas by forward hooks: no module is
replaced, so that one loaded model carries one stack after another and is bit-exactly itself in
between. Its arithmetic is PEFT's (float32 factors, one cast of the sum).

Shapes: I in, O out, R rank; x (..., I).
"""

from __future__ import annotations

import difflib
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from kit.adapters.algebra import resolve_tied
from kit.adapters.tensors import Adapter, LowRank
from kit.errors import AdapterError, TrainingError
from kit.models.loading import keep_canonical_4bit_layout


def attach_lora(
    model: PreTrainedModel,
    *,
    rank: int,
    alpha: float,
    rslora: bool,
    dropout: float,
    target_modules: Sequence[str] | Literal["all-linear"],
    seed: int,
) -> PeftModel:
    """Put a new LoRA on a model and freeze everything else.

    The adapter's numbers depend on `seed` alone: it is set before they are drawn, and the caller's
    random state is as it was afterwards. Trainable weights are float32 whatever the base holds.

    Args:
        model: plain or NF4, on any device.
        rank: R of every pair.
        alpha: the delta is scaled by alpha / R, or by alpha / sqrt(R) with rsLoRA.
        rslora: arXiv 2312.03732.
        dropout: on the adapter's input while training.
        target_modules: names or ends of names after a dot, each of which must match a linear layer;
            `all-linear` is every linear layer but the head.
        seed: of the initialisation.

    Raises:
        AdapterError: a pattern matches nothing, or the model carries an adapter already.
    """
    if isinstance(model, PeftModel) or any(".lora_A." in n for n, _ in model.named_parameters()):
        raise AdapterError("the model carries an adapter already", fix="load it afresh")
    targets = target_modules if isinstance(target_modules, str) else list(target_modules)
    if isinstance(targets, str):
        if targets != "all-linear":
            raise AdapterError(f"target_modules is {targets!r}", fix="all-linear, or a list")
    else:
        _every_pattern_matches(model, targets)
    keep_canonical_4bit_layout(model)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT divides it; a float is as good
        use_rslora=rslora,
        lora_dropout=dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        wrapped = get_peft_model(model, config)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    assert isinstance(wrapped, PeftModel)
    return wrapped


def _every_pattern_matches(model: nn.Module, patterns: Sequence[str]) -> None:
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not patterns:
        raise AdapterError("target_modules is empty", fix="name modules, or write all-linear")
    leaves = sorted({name.rsplit(".", 1)[-1] for name in linear})
    for pattern in patterns:
        if any(name == pattern or name.endswith("." + pattern) for name in linear):
            continue
        near = difflib.get_close_matches(pattern, [*leaves, *linear], n=3, cutoff=0.4)
        raise AdapterError(
            f"{pattern!r} matches no linear layer",
            where="target_modules",
            fix=f"near: {', '.join(near or leaves)}",
        )


def check_gradients(model: nn.Module, *, first_update_done: bool) -> None:
    """Assert after a backward pass that every adapted module learns.

    lora_B must have a gradient other than 0 always. lora_A has none before the first update with a
    rate above 0, since B starts at 0; afterwards it must have one too.

    Args:
        model: after `loss.backward()`, before the gradients are cleared.
        first_update_done: whether an update with a rate above 0 was made.

    Raises:
        TrainingError: names the modules whose gradient is missing, 0 or not finite; or there is no
            trainable adapter at all.
    """
    sides = (".lora_A.", ".lora_B.") if first_update_done else (".lora_B.",)
    seen, dead = 0, []
    for name, parameter in model.named_parameters():
        if not any(side in name for side in sides):
            continue
        seen += 1
        problem = _gradient_problem(parameter)
        if problem:
            dead.append(f"{name} ({problem})")
    if not seen:
        raise TrainingError("the model has no adapter to train", fix="attach one first")
    if dead:
        shown = ", ".join(dead[:4]) + (f" and {len(dead) - 4} more" if dead[4:] else "")
        raise TrainingError(
            f"{len(dead)} of {seen} adapter weights do not learn: {shown}",
            fix="an evaluation may have repacked 4-bit weights (keep_canonical_4bit_layout), "
            "a module may be frozen or outside the loss's graph",
        )


def _gradient_problem(parameter: nn.Parameter) -> str | None:
    if not parameter.requires_grad:
        return "frozen"
    if parameter.grad is None:
        return "no gradient"
    if not bool(torch.isfinite(parameter.grad).all()):
        return "gradient is not finite"
    return None if bool(parameter.grad.any()) else "gradient is exactly 0"


@dataclass
class _Mounted:
    """What is to be undone."""

    hooks: list[RemovableHandle] = field(default_factory=list)
    originals: list[tuple[nn.Module, str, nn.Parameter]] = field(default_factory=list)


_MOUNTED: weakref.WeakKeyDictionary[nn.Module, _Mounted] = weakref.WeakKeyDictionary()


def mount(model: PreTrainedModel, adapter: Adapter | None) -> int:
    """Place an adapter on a loaded plain model; returns how many modules and tensors it changed.

    Args:
        model: plain or NF4, on any device, without PEFT's layers.
        adapter: None (an empty stack) changes nothing, but counts as mounted.

    Raises:
        AdapterError: something is mounted already; a module or tensor is not there, has another
            shape, or cannot be replaced. The model is then unchanged.
    """
    if model in _MOUNTED:
        raise AdapterError("an adapter is mounted already", fix="unmount it first")
    adapter = adapter or Adapter()
    adapter = _resolve_tied(model, adapter)
    modules = dict(model.named_modules(remove_duplicate=False))
    problems = [_module_problem(modules, name, pair) for name, pair in adapter.deltas.items()]
    values = {**adapter.replaced, **{n: v for n, v in adapter.added.items()}}
    problems += [_tensor_problem(modules, name, value) for name, value in values.items()]
    found = [problem for problem in problems if problem]
    if found:
        shown = "; ".join(found[:5]) + (f"; {len(found) - 5} more" if found[5:] else "")
        raise AdapterError(
            f"{len(found)} of {len(problems)} adapter keys do not fit the model: {shown}",
            fix="mount it on the architecture that it was trained on",
        )
    state = _MOUNTED.setdefault(model, _Mounted())
    for name in values:
        _swap(model, modules, name, adapter, state)
    for name, pair in adapter.deltas.items():
        module = modules[name]
        device = next(module.parameters()).device
        hook = _Delta(pair, device)
        state.hooks.append(module.register_forward_hook(hook))
    return len(adapter.deltas) + len(values)


def unmount(model: PreTrainedModel) -> None:
    """Take off what `mount` placed; the model is bit-exactly what it was.

    Raises:
        AdapterError: nothing is mounted.
    """
    if model not in _MOUNTED:
        raise AdapterError("nothing is mounted on the model")
    state = _MOUNTED.pop(model)
    for hook in state.hooks:
        hook.remove()
    for owner, leaf, parameter in reversed(state.originals):
        setattr(owner, leaf, parameter)


@contextmanager
def mounted(model: PreTrainedModel, adapter: Adapter | None) -> Iterator[PreTrainedModel]:
    """`mount` for the length of a block."""
    mount(model, adapter)
    try:
        yield model
    finally:
        unmount(model)


class _Delta:
    """The hook of one module: adds `x @ a_RI.T @ b_OR.T` to its output."""

    def __init__(self, pair: LowRank, device: torch.device) -> None:
        self.a_RI = pair.a_RI.to(device=device, dtype=torch.float32)
        self.b_OR = (pair.b_OR.float() * pair.scale).to(device=device)

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        x = inputs[0].to(torch.float32)
        delta = functional.linear(functional.linear(x, self.a_RI), self.b_OR)
        return (output + delta).to(output.dtype)


def _resolve_tied(model: PreTrainedModel, adapter: Adapter) -> Adapter:
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    if last is None or first.weight is not last.weight:
        return adapter
    names = {id(module): name for name, module in model.named_modules()}
    embedding, head = names[id(first)], names[id(last)]
    return resolve_tied(adapter, embedding=f"{embedding}.weight", head=f"{head}.weight")


def _module_problem(modules: dict[str, nn.Module], name: str, pair: LowRank) -> str | None:
    module = modules.get(name)
    if module is None:
        return f"no module {name}"
    if not isinstance(module, nn.Linear):
        return f"{name} is a {type(module).__name__}, not a linear layer"
    shape = (module.out_features, module.in_features)
    return None if shape == pair.shape else f"{name} is {shape}, the adapter's is {pair.shape}"


def _tensor_problem(modules: dict[str, nn.Module], name: str, value: Tensor) -> str | None:
    owner, _, leaf = name.rpartition(".")
    parameter = getattr(modules.get(owner), leaf, None)
    if not isinstance(parameter, nn.Parameter):
        return f"no tensor {name}"
    if not parameter.is_floating_point():
        return f"{name} is quantised and cannot be replaced"
    if parameter.shape != value.shape:
        return f"{name} is {tuple(parameter.shape)}, the adapter's is {tuple(value.shape)}"
    return None


def _swap(
    model: nn.Module, modules: dict[str, nn.Module], name: str, adapter: Adapter, state: _Mounted
) -> None:
    owner, _, leaf = name.rpartition(".")
    old = getattr(modules[owner], leaf)
    value = adapter.replaced[name] if name in adapter.replaced else old.detach()
    value = value.to(device=old.device, dtype=torch.float32)
    if name in adapter.added:
        value = value + adapter.added[name].to(old.device)
    new = nn.Parameter(value.to(old.dtype), requires_grad=False)
    # A tied head is the same object in another place, and has to go along.
    for holder in model.modules():
        for key, parameter in list(holder.named_parameters(recurse=False)):
            if parameter is old:
                state.originals.append((holder, key, old))
                setattr(holder, key, new)
