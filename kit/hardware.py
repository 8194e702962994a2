"""What the machine can do, and which dtype follows from it.

torch is imported inside the functions: a plan on a laptop needs this module without torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kit.errors import RecipeError

DtypeName = Literal["bfloat16", "float16", "float32"]

PASS_TOKENS = {"cpu": 1024, "cuda": 16384}
"""Tokens of one forward pass while measuring; halved where they do not fit."""
SLOTS = {"cpu": 32, "cuda": 128}
"""Replies that are written side by side; halved where they do not fit."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One device and the dtype policy for it."""

    device: Literal["cuda", "cpu"]
    name: str
    memory_bytes: int
    """Memory of the device; on a CPU the machine's."""
    compute_dtype: DtypeName
    """Dtype of activations and of the frozen 16-bit weights."""
    reason: str
    """Why this dtype."""

    @property
    def needs_loss_scaling(self) -> bool:
        """float16 gradients underflow without a scaler; it exists on CUDA alone."""
        return self.device == "cuda" and self.compute_dtype == "float16"

    def line(self) -> str:
        """One line for the console and the run's record."""
        return f"{self.name}: {self.compute_dtype} ({self.reason})"


def detect(compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto") -> Hardware:
    """Look at the machine and choose the compute dtype.

    Trainable weights are float32 whatever is chosen here: small updates vanish in 16 bit, and on
    cards without bfloat16 the gradient scaler refuses bfloat16 weights.

    Raises:
        RecipeError: the recipe asks for a dtype that the device cannot train in.
    """
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        # torch reports bfloat16 as supported on older cards too, where it is emulated and slow.
        has_bf16 = properties.major >= 8
        generation = f"compute capability {properties.major}.{properties.minor}"
        if compute_dtype == "auto":
            chosen: DtypeName = "bfloat16" if has_bf16 else "float16"
            reason = f"{generation} {'has' if has_bf16 else 'has no'} bfloat16 units"
        else:
            chosen, reason = compute_dtype, "the recipe says so"
            if chosen == "bfloat16" and not has_bf16:
                raise RecipeError(
                    f"{properties.name} has no bfloat16 units ({generation})",
                    where="models.compute_dtype",
                    fix="write auto or float16",
                )
        memory = int(properties.total_memory)
        return Hardware(
            device="cuda",
            name=properties.name,
            memory_bytes=memory,
            compute_dtype=chosen,
            reason=reason,
        )
    return _cpu(compute_dtype)


def _cpu(compute_dtype: Literal["auto", "bfloat16", "float16", "float32"]) -> Hardware:
    import os

    import torch

    if compute_dtype == "float16":
        raise RecipeError(
            "float16 training needs a gradient scaler, which a CPU does not have",
            where="models.compute_dtype",
            fix="write auto, bfloat16 or float32",
        )
    chosen: DtypeName
    if compute_dtype == "auto":
        fast_bf16 = bool(torch.backends.mkldnn.is_available()) and _cpu_has_bf16()
        chosen = "bfloat16" if fast_bf16 else "float32"
        reason = f"the CPU has {'' if fast_bf16 else 'no '}bfloat16 instructions"
    else:
        chosen, reason = compute_dtype, "the recipe says so"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    name = f"CPU, {torch.get_num_threads()} threads"
    return Hardware(
        device="cpu", name=name, memory_bytes=memory, compute_dtype=chosen, reason=reason
    )


def _cpu_has_bf16() -> bool:
    import torch

    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported and supported())
