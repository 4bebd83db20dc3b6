"""Language models for export: the logits of a sequence, and steps that generate what fairseq generates."""

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator
from helpers.language_models import DECODERS, make_decoder, make_dictionary, make_encoder, random_tokens

from fma_kernels.export import export_program, open_onnx, save_onnx
from fma_tools.language_models.onnx_generation import Decoder, greedy
from lm.deployment import DeployedLanguageModel, DeployedStep

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
STEPS = ["full", "near", "fma-nested", "fma-direct", "fma-mean", "fma-biased"]


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("positions", ["rotary", "sinusoidal", "learned"])
@torch.no_grad()
def test_logits_are_those_of_the_model(name, positions):
    model = make_decoder(**DECODERS[name], fma_positions=positions)
    tokens = random_tokens(2, 48)
    expected = model(tokens)[0]
    torch.testing.assert_close(DeployedLanguageModel(model, 48)(tokens), expected, rtol=0, atol=1e-10)
    if name not in STEPS:
        return
    deployed = DeployedStep(model, 60)
    state, found = deployed.empty_state(2), []
    for position, token in enumerate(tokens.T):
        logits, *state = deployed(token, torch.tensor(position), state)
        found.append(logits)
    torch.testing.assert_close(torch.stack(found, 1), expected, rtol=0, atol=1e-10)


def test_greedy_generation_is_that_of_fairseq(tmp_path):
    """onnxruntime, from a state that goes in and out, against fairseq's generator with its own state."""
    model, dictionary = make_decoder(**DECODERS["fma-biased"], fma_positions="rotary").float(), make_dictionary()
    deployed = DeployedStep(model, 64)
    names, state = deployed.state_names, deployed.empty_state(1)
    program = export_program(deployed, (torch.tensor([4]), torch.tensor(0), state))
    outputs = ["logits", *(f"next_{name}" for name in names)]
    properties = {"fma_lm.length": "64"}
    save_onnx(
        program, tmp_path / "a.onnx", inputs=["token", "position", *names], outputs=outputs, metadata=properties
    )  # fmt: skip
    session = open_onnx(tmp_path / "a.onnx")
    assert [tuple(x.shape) for x in session.get_outputs()[1:]] == [tuple(x.shape) for x in state]
    generator = SequenceGenerator([model], dictionary, beam_size=1, max_len_a=0, max_len_b=50, eos=dictionary.bos())
    for seed in range(3):
        prompt = random_tokens(1, 9, seed=seed)
        start = torch.cat([torch.tensor([[dictionary.eos()]]), prompt], 1)
        sample = dict(net_input=dict(src_tokens=start, src_lengths=torch.tensor([10])))
        with torch.no_grad():
            found = generator.generate([model], sample, prefix_tokens=prompt, bos_token=dictionary.eos())
        expected = [token for token in found[0][0]["tokens"].tolist()[9:] if token != dictionary.bos()]
        assert len(expected) > 30
        assert greedy(session, prompt[0].tolist(), len(expected)) == expected
    decoder = Decoder(session)
    for token in random_tokens(1, 64)[0]:
        decoder.take(token[None].numpy())
    with pytest.raises(ValueError, match="position=64: expected less than the 64 tokens of the file"):
        decoder.take(token[None].numpy())


@pytest.mark.parametrize(
    ("make", "length", "message"),
    [
        (make_encoder, 8, "model='.*': expected a model of fma_lm"),
        (make_decoder, 0, "length=0: expected an integer >= 1"),
        (lambda: make_decoder(fma_positions="learned"), 65, "number of tokens=65: expected at most 64"),
        (lambda: make_decoder(**DECODERS["fma-linear"]), 8, "attention='fma_linear': expected full, near or fma"),
        (lambda: make_decoder(**DECODERS["local"]), 8, "attention='Local': expected full, near or fma"),
        (
            lambda: make_decoder(
                adaptive_softmax_cutoff="10,20", adaptive_input=True, adaptive_input_cutoff="10,20",
                share_decoder_input_output_embed=False,
            ),
            8,
            "adaptive_softmax=True: expected False",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_named(make, length, message):
    with pytest.raises(ValueError, match=message):
        DeployedStep(make(), length)
