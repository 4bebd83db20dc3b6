import time
import torch
from ..backends.selection import exporting
from . import attention, pooling
from .folding import fold_constants

_ops = torch.ops.fma_kernels
def decompositions():
    return {_ops.attend.default: attention.attend, _ops.fma.default: pooling.fma, _ops.pool.default: pooling.pool,
      _ops.contract.default: pooling.contract, _ops.summary_counts.default: pooling.summary_counts}

def export_program(model, args, dynamic_shapes=None, fold=True):
    t=time.time()
    token=exporting.set(True)
    try:
        with torch.no_grad():
            p=torch.export.export(model,args,dynamic_shapes=dynamic_shapes)
    finally: exporting.reset(token)
    print("export",time.time()-t, len(p.graph.nodes)); t=time.time()
    def linear(x, weight, bias=None):
        y = x @ weight.mT
        return y if bias is None else y + bias
    def unbind(x, dim=0):
        return [x.select(dim,i) for i in range(x.shape[dim])]
    p=p.run_decompositions({**decompositions(), torch.ops.aten.linear.default: linear, torch.ops.aten.unbind.int: unbind})
    print("decompose",time.time()-t, len(p.graph.nodes)); t=time.time()
    if fold:
        m=p.module()
        print("module",time.time()-t); t=time.time()
        fold_constants(m)
        print("fold",time.time()-t, len(m.graph.nodes)); t=time.time()
        with torch.no_grad(): p=torch.export.export(m,args,dynamic_shapes=dynamic_shapes)
        print("reexport",time.time()-t, len(p.graph.nodes))
    return p
