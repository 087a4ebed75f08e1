"""The precision of matrix products by name; weights and sums are float32, and on a CPU states, too.

On a GPU, PyTorch's autocast has recurrent layers compute in float16 throughout, for bf16 as well.
"""

import torch

from utils.rnn.products import has_bf16_products, matmul_library, tells_capabilities

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def available_precision(precision: str, device: torch.device) -> str:
    """The precision that a device computes in when asked for one: fp32 for bf16 on a CPU without such products."""
    if precision == "bf16" and device.type == "cpu" and not has_bf16_products():
        return "fp32"
    return precision


def describe_precision(precision: str, device: torch.device) -> str:
    """What a device computes in when asked for a precision, and on a CPU by which library, in a few words."""
    if device.type != "cpu":
        layers = ", recurrent layers in fp16" if precision == "bf16" else ""
        return f"{precision} (TF32 off{layers})"
    if available_precision(precision, device) == precision:
        return f"{precision} ({'oneDNN' if precision == 'bf16' else matmul_library()})"
    reason = "this CPU has no products in bfloat16"
    if not tells_capabilities():
        reason = "PyTorch before 2.11 does not tell whether this CPU has products in bfloat16"
    return f"fp32 ({matmul_library()}: {reason})"


def scales_gradients(precision: str, device: torch.device) -> bool:
    """Whether gradients are scaled: some would be too small for float16, which a GPU's layers compute in."""
    return precision == "fp16" or (precision == "bf16" and device.type == "cuda")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context in which matrix products have a precision."""
    dtype = PRECISIONS[available_precision(precision, device)]
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
