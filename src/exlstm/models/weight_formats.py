"""Names of the formats of weights. Without torch: the command line shows them in its help."""

from typing import Literal

Bits = Literal["int8", "int4"]  # of quantized weights
WeightFormat = Literal["as-saved", "float32", "bfloat16", "int8", "int4"]  # what a model can be loaded in
