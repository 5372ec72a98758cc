"""What networks may compute in, by what users say, with the name of the dtype in torch. Importing this is cheap."""

from __future__ import annotations

# tf32 is float32 with products of fewer digits, on GPUs that have it.
DTYPES = {"float32": "float32", "tf32": "float32", "bfloat16": "bfloat16", "float16": "float16"}
