"""Settings of `scorers serve`."""

from dataclasses import dataclass, field

from ...core.errors import UsageError
from ..annotate.config import ServeConfig
from ..scorers.precision import AUTO, DTYPES


@dataclass(frozen=True, kw_only=True)
class ScorerServerConfig(ServeConfig):
    scorer: str
    port: int = 8600
    """Port to listen on; 0 picks a free one."""
    checkpoints: dict[str, str] = field(default_factory=dict)
    """Scorer's checkpoint: PATH, a hub id, or shapes for the built-in world's; by default the official one."""
    batch_size: int = 64
    """Images scored at once."""
    device: str | None = None
    """cuda, mps or cpu; the best available if not given."""
    dtype: str = AUTO
    """auto, float32, bfloat16 or float16: what the model runs in; auto is float32, and on CUDA bfloat16, or float16 on a GPU
    that has no bfloat16. Scores are float32 either way."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.batch_size <= 100_000:
            raise UsageError(f"batch-size must be between 1 and 100000, got {self.batch_size}")
        if self.dtype not in (*DTYPES, AUTO):
            raise UsageError(f"unknown dtype {self.dtype!r}; choose from {', '.join((*DTYPES, AUTO))}")
