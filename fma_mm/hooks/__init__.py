from .atomic_checkpoint import AtomicCheckpointHook
from .convert_attention import ConvertAttentionHook
from .cpu_threads import CPUThreadsHook
from .exact_resume import ExactResumeHook
from .run_summary import RunSummaryHook

__all__ = ["AtomicCheckpointHook", "CPUThreadsHook", "ConvertAttentionHook", "ExactResumeHook", "RunSummaryHook"]
