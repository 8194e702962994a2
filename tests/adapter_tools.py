"""What the tests of the adapters share: pico models, random adapters, logits."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from kit.adapters.tensors import Sidecar, write_sidecar
from kit.models.weights import weights_fingerprint

IDS = torch.arange(48).reshape(2, 24) * 5 % 256


def load(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(input_ids=IDS.to(model.device)).logits.cpu()


def random_lora(base: Path, out: Path, *, seed: int = 0, sidecar: bool = True, **options) -> Path:
    """An adapter as PEFT saves it after some training: both factors random."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT on tied weights, which is what some tests are about
        model = get_peft_model(load(base), LoraConfig(**{**settings, **options}))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and "modules_to_save" in name:
                    parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
                elif parameter.requires_grad:
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(out)
    if sidecar:
        fingerprint = weights_fingerprint(base)
        write_sidecar(
            out, Sidecar(base_name="base", base_fingerprint=fingerprint, quantization="none")
        )
    return out
