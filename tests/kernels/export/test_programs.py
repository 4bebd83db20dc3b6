"""Programs and ONNX files of modules: any batch, masks, global tokens, half precision, and what cannot be exported."""


import numpy as np
import pytest
import torch
from torch import nn

from fma_kernels import FMAttention
from fma_kernels.export import export_program, open_onnx, save_onnx
from fma_kernels.export.folding import fold_constants

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


def layer(dtype=torch.float32, **options):
    torch.manual_seed(0)
    module = FMAttention(16, 2, **{**dict(cell_size=2, num_levels=4), **options}).eval()
    for name, parameter in module.named_parameters():  # bases that are not means show a wrong order of weights
        if "_basis" in name:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return module.to(dtype)


class OnGrid(nn.Module):
    """A layer on one grid, with or without a mask."""

    def __init__(self, layer, grid):
        super().__init__()
        self.layer, self.grid = layer, grid

    def forward(self, x, mask=None):
        return self.layer(x, self.grid, mask)


def write(module, args, path, **options):
    program = export_program(module.eval(), args, **options)
    save_onnx(program, path, inputs=["x", "mask"][: len(args)], outputs=["y"], metadata={"made by": "a test"})
    return open_onnx(path)


def test_any_batch_with_a_class_token(tmp_path):
    module = OnGrid(layer(ndim=2, num_global_tokens=1, rank=2, attention="fma_linear"), (9, 12))
    session = write(module, (torch.randn(1, 109, 16),), tmp_path / "a.onnx", dynamic_batch=True)
    assert session.get_modelmeta().custom_metadata_map == {"made by": "a test"}
    for batch in (1, 2, 7):
        x = torch.randn(batch, 109, 16)
        (found,) = session.run(None, {"x": x.numpy()})
        with torch.no_grad():
            expected = module(x)
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-5)


def test_a_mask_is_an_input(tmp_path):
    module = OnGrid(layer(ndim=2, num_global_tokens=1), (9, 12))
    x, mask = torch.randn(2, 109, 16), torch.rand(2, 108) < 0.3
    session = write(module, (x, torch.zeros_like(mask)), tmp_path / "a.onnx")
    mask[0] = True  # nothing but the class token is left to read
    (found,) = session.run(None, {"x": x.numpy(), "mask": mask.numpy()})
    with torch.no_grad():
        expected = module(x, mask)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [dict(basis_kind="direct"), dict(basis_kind="mean", causal=True)], ids=str)
def test_standard_operators_only(options, tmp_path):
    module = layer(**options)
    x = torch.randn(1, 41, 16)
    session = write(module, (x,), tmp_path / "a.onnx")
    with torch.no_grad():
        expected = module(x)
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), expected, rtol=0, atol=1e-5)
    model = onnx.load(tmp_path / "a.onnx")
    onnx.checker.check_model(model)
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    names = {node.op_type for node in model.graph.node}
    assert not names & {"Loop", "If", "GatherND", "ScatterND", "SequenceEmpty"}
    # Nothing is computed that depends on the weights alone.
    constants = {x.name for x in model.graph.initializer}
    assert all(set(node.input) - constants for node in model.graph.node)


def test_half_precision(tmp_path):
    module = layer(torch.float16, ndim=2)
    x = torch.randn(2, 108, 16)
    grid = OnGrid(module, (9, 12))
    session = write(grid, (x.half(),), tmp_path / "a.onnx")
    with torch.no_grad():
        expected = OnGrid(layer(ndim=2), (9, 12))(x)
    (found,) = session.run(None, {"x": x.half().numpy()})
    assert found.dtype == np.float16
    torch.testing.assert_close(torch.from_numpy(found).float(), expected, rtol=0, atol=5e-3)


def test_a_program_needs_nothing_of_the_library(tmp_path):
    module = layer(ndim=2)
    x = torch.randn(1, 108, 16)
    program = export_program(OnGrid(module, (9, 12)).eval(), (x,))
    assert not [node for node in program.graph.nodes if "fma_kernels" in str(node.target)]
    assert not [name for name in program.state_dict if "basis" in name]  # they are folded into weights of cells
    torch.export.save(program, tmp_path / "a.pt2")
    with torch.no_grad():
        expected = module(x, (9, 12))
    torch.testing.assert_close(torch.export.load(tmp_path / "a.pt2").module()(x), expected, rtol=0, atol=1e-5)


def test_training_mode_is_refused():
    module = layer(attn_drop=0.1).train()
    with pytest.raises(ValueError, match=r"model.training=True: expected False: call eval\(\) on the model first"):
        export_program(module, (torch.randn(1, 41, 16),))


def test_missing_packages_are_named(monkeypatch, tmp_path):
    program = export_program(nn.Linear(2, 2).eval(), (torch.randn(1, 2),))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"onnx and onnxscript not installed: expected fma-mm\[export\]"):
        save_onnx(program, tmp_path / "a.onnx", inputs=["x"], outputs=["y"])
    with pytest.raises(ImportError, match=r"onnxruntime not installed: expected fma-mm\[export\]"):
        open_onnx(tmp_path / "a.onnx")


def test_files_that_are_none_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"path='.*a.onnx': expected an ONNX file"):
        open_onnx(tmp_path / "a.onnx")
    (tmp_path / "a.onnx").write_text("text")
    with pytest.raises(ValueError, match=r"path='.*a.onnx': expected an ONNX file: .*rotobuf"):
        open_onnx(tmp_path / "a.onnx")


def test_folding_computes_what_depends_on_weights_alone():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.unused = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(2))

        def forward(self, x):
            noise = torch.rand_like(self.weight)  # is drawn anew by every call
            spread = self.weight[:, None].expand(3, 10**5, 4)  # is written out by no constant
            return x @ self.weight.T.exp() + 0 * noise.sum() + 0 * spread.sum()

    x = torch.randn(2, 4)
    model = Model()
    program = torch.export.export(model, (x,)).module()
    expected = program(x)
    fold_constants(program)
    torch.testing.assert_close(program(x), expected)
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert not any("exp." in target or "transpose" in target or "permute" in target for target in targets)
    assert any("rand" in target for target in targets) and any("expand" in target for target in targets)
    assert not hasattr(program, "unused")


