"""Causal models as functions of tensors alone, for export: a whole sequence at once, or one token after the other."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from fma_kernels.checks import require
from fma_kernels.export import DecodingStep

from .attention.self_attention import STATE, SelfAttention
from .models.fma_lm import FMALanguageModel
from .positions import position_embeddings


class _DeployedDecoder(nn.Module):
    """The decoder of a model, and the embeddings of its positions as a table.

    Args:
        model: in evaluation mode; it stays as it is.
        length: tokens of the longest sequence.

    Raises:
        ValueError: the model is none of ``fma_lm``, its softmax is adaptive, or learned positions end before
            ``length``.
    """

    def __init__(self, model: FMALanguageModel, length: int):
        super().__init__()
        require(isinstance(model, FMALanguageModel), "model", type(model).__name__, "a model of fma_lm")
        require(isinstance(length, int) and length >= 1, "length", length, "an integer >= 1")
        self.decoder = model.decoder
        adaptive = self.decoder.adaptive_softmax is not None
        require(not adaptive, "adaptive_softmax", adaptive, "False: export makes the logits of all words")
        positions = None
        if self.decoder.embed_positions is not None:
            positions = position_embeddings(self.decoder.embed_positions, 0, length).detach().clone()
        self.register_buffer("positions", positions)
        self.eval()


class DeployedLanguageModel(_DeployedDecoder):
    """The logits of all tokens of a sequence of one length.

    The arguments and errors are those of the class above; the attention may be any that needs no library of its own.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute the logits.

        Args:
            tokens: (B, length) int64, without padding.

        Returns:
            (B, length, words).
        """
        return self.decoder.output_layer(self.decoder.run_layers(tokens, self.positions)[0])


class DeployedStep(_DeployedDecoder):
    """The logits of the next token, with the state of generation as input and output: O(log n) numbers for FMA.

    Args:
        model: ``full``, ``near`` or ``fma``; in evaluation mode.
        length: tokens of the longest sequence.

    Attributes:
        state_names: names of the tensors of the state, in order.

    Raises:
        ValueError: as above, or the attention cannot decode in steps of a fixed shape.
    """

    def __init__(self, model: FMALanguageModel, length: int):
        super().__init__(model, length)
        self._steps = [DecodingStep(layer.attention, length) for layer in self._attentions()]
        self._parts = [list(state) for state in self._empty(0)]
        self.state_names = [f"layer{i}_{part}" for i, parts in enumerate(self._parts) for part in parts]

    def empty_state(self, batch: int) -> list[Tensor]:
        """The state before the first token: zeros.

        Args:
            batch: sequences B.
        """
        return [x for step in self._empty(batch) for x in step.values()]

    def forward(self, token: Tensor, position: Tensor, state: list[Tensor]) -> tuple[Tensor, ...]:
        """Take a token.

        Args:
            token: (B,) int64.
            position: number of tokens before it, int64 without dimensions.
            state: from :meth:`empty_state`, or the last step.

        Returns:
            The logits of the token that follows, (B, words), then the new state.
        """
        given, taken, incremental_state = iter(state), [], {}
        for layer, step, parts in zip(self._attentions(), self._steps, self._parts, strict=True):
            taken.append(_OneToken(step, position, {part: next(given) for part in parts}))
            layer.set_incremental_state(incremental_state, STATE, taken[-1])
        positions = None if self.positions is None else self.positions.index_select(0, position[None])
        x, _ = self.decoder.run_layers(token[:, None], positions, incremental_state)
        logits = self.decoder.output_layer(x)[:, 0]
        return logits, *(x for state in taken for x in state.tensors.values())

    def _attentions(self) -> Iterator[SelfAttention]:
        return (module for module in self.decoder.modules() if isinstance(module, SelfAttention))

    def _empty(self, batch: int) -> list[dict[str, Tensor]]:
        like = next(self.decoder.parameters())
        return [step.empty(batch, like) for step in self._steps]


class _OneToken:
    """State of one attention for one step, as :class:`lm.attention.base.State`."""

    def __init__(self, step: DecodingStep, position: Tensor, tensors: dict[str, Tensor]):
        self._step, self.num_tokens, self.tensors = step, position, tensors

    def take(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out, self.tensors = self._step(query, key, value, self.num_tokens, self.tensors)
        return out
