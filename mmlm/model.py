"""The model: embed, backbone, heads; and how it is saved and loaded.

A model folder holds config.json and model.safetensors; nothing else is needed and nothing is unpickled.
Axes: b rows   t tokens   d width   v vocabulary rows
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmlm.backbone.backbone import Backbone
from mmlm.backbone.cache import Cache
from mmlm.base.errors import CheckpointError, RecipeError, unknown_name
from mmlm.base.files import read_json, write_text_whole
from mmlm.base.schema import check
from mmlm.decoding import Precision, Prompt
from mmlm.encoders.config import Projector
from mmlm.generation import Generated, Grammar, Guidance, Sampling, generate
from mmlm.heads.codebooks import CodebooksHead
from mmlm.heads.rows import OutputRows, extended
from mmlm.layout import Layout
from mmlm.model_config import ModelConfig
from mmlm.parameters import give_memory, initialize, linear, name_axes, shapes_alone
from mmlm.stream import Batch, Stream
from mmlm.tokenizers.base import TextLike
from mmlm.vocabulary import Vocabulary
from mmlm.weights import copy_tensors, read_tensors, write_tensors

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class MultimodalLM(nn.Module):
    """One decoder that reads ids, codes, features and added channels, with named heads.

    text: the tokenizer that came with the weights, if any.   stop: ids that end what it writes, unless others are named.
    """

    text: TextLike | None = None
    stop: tuple[int, ...] = ()

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = Vocabulary(config.vocabulary)
        width = config.backbone.width
        self.embedding = TokenEmbedding(len(self.vocabulary), width, config.backbone.embedding_scale)
        name_axes(self.embedding.weight, "vocab", "residual")
        if missing := config.encoders.keys() - config.features.keys():
            raise RecipeError(f"encoders {sorted(missing)} need the number of channels they read, in `features`.")
        self.encoders = nn.ModuleDict({name: choice.build(config.features[name]) for name, choice in config.encoders.items()})
        self.projectors = nn.ModuleDict(
            {name: projector(config.projectors.get(name, "linear"), encoder.size, width) for name, encoder in self.encoders.items()}
        )
        self.channels = nn.ModuleDict(
            {
                name: FixedNumber(width)
                if channel.kind == "number"
                else nn.Embedding(channel.size, width)
                if channel.kind == "ids"
                else linear(channel.size, width, "channel", "residual", bias=False)
                for name, channel in config.channels.items()
            }
        )
        for channel in self.channels.values():
            if isinstance(channel, nn.Embedding):
                name_axes(channel.weight, "channel", "residual")
        self.backbone = Backbone(config.backbone)
        self.heads = nn.ModuleDict({name: head.build(width, self.vocabulary, self.embedding) for name, head in config.heads.items()})
        initialize(self, config.backbone.num_layers)

    def embed(self, batch: Batch) -> Tensor:
        """Vectors [b, t, d]: ids and codes summed, features in the places they fill, channels added."""
        if batch.codes is None:
            x_btd = self.embedding(batch.ids)
        else:
            x_btd = _rows(self.embedding, batch.ids) + _rows(self.embedding, batch.codes[..., 1:]).sum(-2)
        for name, features in batch.features.items():
            if name not in self.encoders:
                raise RecipeError(f"the batch holds features for {unknown_name('encoder', name, self.encoders)}")
            sizes, places = batch.whole_sizes.get(name), batch.feature_at[name]
            read = self.encoders[name](features) if sizes is None else self.encoders[name](features, sizes)
            if len(read) != len(places):
                raise RecipeError(f"encoder {name!r} made {len(read)} vectors, but {len(places)} tokens wait for one.")
            vectors = self.projectors[name](read).to(x_btd.dtype)
            x_btd = x_btd.flatten(0, 1).index_copy(0, places, vectors).view_as(x_btd)
        for name, value in batch.channels.items():
            if name not in self.channels:
                raise RecipeError(f"the batch holds values for {unknown_name('channel', name, self.channels)}")
            channel = self.channels[name]
            added = _rows(channel, value) if isinstance(channel, nn.Embedding) else channel(value)
            x_btd = x_btd + added.to(x_btd.dtype)
        return x_btd

    def hidden(self, batch: Batch, cache: Cache | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Hidden states [b, t, d] after the final norm, and the backbone's auxiliary losses."""
        return self.backbone(self.embed(batch), batch.layout, cache)

    def losses(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Sum and weight of every loss: those of the heads, and the backbone's, which count tokens."""
        if batch.code_labels is not None and not any(isinstance(head, CodebooksHead) for head in self.heads.values()):
            raise RecipeError("the batch asks for several codebooks at a token, but the model has no head of the type codebooks.")
        return self.losses_of(*self.hidden(batch), batch)

    def losses_of(self, h_btd: Tensor, aux: Mapping[str, Tensor], batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """The same from what `hidden` made of the batch."""
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for head in self.heads.values():
            found |= head.loss(h_btd, batch)
        tokens = torch.tensor(float(batch.num_tokens))
        return found | {name: (value * tokens, tokens) for name, value in aux.items()}

    def loss_weights(self, batch: Batch) -> dict[str, float]:
        """The weights that `losses` will report, without a forward pass."""
        found: dict[str, float] = {name: float(batch.num_tokens) for name in self.aux_names}
        for head in self.heads.values():
            found |= head.loss_weights(batch)
        return found

    @property
    def aux_names(self) -> set[str]:
        """Names of the backbone's auxiliary losses."""
        return {name for layer in self.backbone.layers for name in getattr(layer.feed_forward, "aux_names", ())}

    def forward(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """`losses`: what the trainer calls."""
        return self.losses(batch)

    def logits(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Scores float32 [b, t, v] of the language-model head for ids [b, t], after the tokens in a cache if one is given."""
        start = cache.length if cache is not None else 0
        layout = Layout.plain(*ids.shape, start=start, device=ids.device)
        h_btd, _ = self.backbone(self.embedding(ids), layout, cache)
        return self.heads["language_model"].predict(h_btd)

    def generate(
        self,
        prompts: str | Prompt | Sequence[str | Prompt],
        *,
        max_new_tokens: int = 64,
        sampling: Sampling | Mapping[str, Any] | None = None,
        stop: Sequence[int] | None = None,
        grammar: Grammar | None = None,
        guidance: Sequence[Guidance] = (),
        seed: int = 0,
        precision: Precision = "auto",
    ) -> list[Generated]:
        """Continue texts (where the model has a text tokenizer), ids [t] or [b, t], or streams; one result a prompt, with its text.

        sampling: how tokens are chosen, an object or its fields; default greedy. precision: "bf16" or "int8" decode faster on a CPU.
        Raises RecipeError for prompts or settings that cannot be used.
        """
        single = isinstance(prompts, str | Stream) or (isinstance(prompts, Tensor) and prompts.ndim == 1)
        given: list[Any] = [prompts] if single else list(prompts)  # type: ignore[arg-type]
        if not given:
            return []
        asked = [self._text_ids(prompt) if isinstance(prompt, str) else prompt for prompt in given]
        choice = sampling if isinstance(sampling, Sampling) or sampling is None else check(Sampling, dict(sampling), "sampling")
        found = generate(
            self, asked, max_new_tokens=max_new_tokens, sampling=choice, stop=self.stop if stop is None else stop, grammar=grammar,
            guidance=guidance, seed=seed, precision=precision,
        )  # fmt: skip
        if self.text is not None:
            span = self.vocabulary.span("text")
            for one in found:
                one.text = self.text.decode([index - span.start for index in one.ids if index in span and index not in self.stop])
        return found

    def _text_ids(self, text: str) -> Tensor:
        if self.text is None:
            raise RecipeError("this model has no text tokenizer beside its weights: give ids instead of a text.")
        ids = [*self.text.first, *self.text.ids([text])[0]]
        if not ids:
            raise RecipeError("a prompt must hold at least one token, but is empty.")
        return torch.tensor(ids) + self.vocabulary.span("text").start

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    @torch.no_grad()
    def extend_vocabulary(self, sizes: dict[str, int], init: str = "mean") -> None:
        """Add ranges after the present ones. init: mean (of the present rows) or random. Present rows and their scores stay as they are.
        Heads that score ids follow; one of codebooks without named ranges predicts new codebooks too."""
        wider = self.vocabulary.extended(sizes)
        added = len(wider) - len(self.vocabulary)
        if not added:
            return
        self.embedding.weight = extended(self.embedding.weight, added, init)
        self.embedding.num_embeddings = len(wider)
        self.vocabulary = wider
        for head in self.heads.values():
            if isinstance(head, OutputRows):
                head.extend(wider, init)
        self.config = self.config.model_copy(update={"vocabulary": wider.sizes})

    def add_encoders(self, encoders: Mapping[str, Any], features: Mapping[str, int], projectors: Mapping[str, Projector]) -> None:
        """Further encoders by name, configs of theirs, for features of so many channels. What is there stays as it is."""
        width, layers = self.config.backbone.width, self.config.backbone.num_layers
        for name, choice in encoders.items():
            self.encoders[name] = choice.build(features[name])
            self.projectors[name] = projector(projectors.get(name, "linear"), self.encoders[name].size, width)
            for part in (self.encoders[name], self.projectors[name]):
                initialize(part, layers)
        joined = {"encoders": encoders, "features": features, "projectors": projectors}
        self.config = self.config.model_copy(update={key: {**getattr(self.config, key), **some} for key, some in joined.items()})

    def set_dropout(self, share: float) -> None:
        """Drop so much of the backbone's hidden states in training from now on; a model that is saved says so."""
        self.backbone.set_dropout(share)
        self.config = self.config.model_copy(update={"backbone": self.backbone.config})

    def save_pretrained(self, folder: Path | str) -> None:
        """Write config.json and model.safetensors. Raises RecipeError while adapters are attached: they are files of their own."""
        self.refuse_adapters()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        held = {
            name: getattr(self.encoders[name], "without_weights", each.without_weights)() for name, each in self.config.encoders.items()
        }
        config = self.config.model_copy(update={"encoders": held}).model_dump(mode="json", by_alias=True)
        write_text_whole(folder / CONFIG, json.dumps({"model_type": "mmlm", "stop": list(self.stop), **config}, indent=2) + "\n")
        write_tensors(folder / WEIGHTS, self.state_dict())

    def refuse_adapters(self) -> None:
        """Raises RecipeError while adapters are attached, whose weights no format of a whole model holds."""
        if any(hasattr(part, "lora_A") for part in self.modules()):
            raise RecipeError("the model has adapters attached: merge them (mmlm.adapt.merge_lora), or write them with save_adapters.")

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> MultimodalLM:
        """The model that save_pretrained wrote. Raises CheckpointError naming the file and the first ten keys that do not fit."""
        folder = Path(folder)
        raw = read_json(folder / CONFIG)
        if raw.pop("model_type", None) != "mmlm":
            raise CheckpointError(f"{folder / CONFIG}: not a model of mmlm; read others through mmlm.load or `mmlm convert`.")
        stop = raw.pop("stop", [])
        try:
            config = check(ModelConfig, raw, str(folder / CONFIG))
        except RecipeError as error:
            raise CheckpointError(str(error)) from None
        with shapes_alone():
            model = cls(config)
        give_memory(model)
        for module in model.modules():  # buffers that are not saved, such as rotary frequencies, are made again
            getattr(module, "reset_buffers", lambda: None)()
        copy_tensors(model.state_dict(), read_tensors(folder / WEIGHTS), str(folder / WEIGHTS))
        if not isinstance(stop, list) or not all(isinstance(each, int) and 0 <= each < len(model.vocabulary) for each in stop):
            raise CheckpointError(f"{folder / CONFIG}: stop: must be a list of ids of the vocabulary, but is {str(stop)[:80]}.")
        model.stop = tuple(stop)
        return model.eval()


def projector(kind: Projector, size: int, width: int) -> nn.Module:
    """[n, size] -> [n, width]: a matrix, or two with a GELU between them (LLaVA 1.5, arXiv:2310.03744)."""
    if kind == "linear":
        return linear(size, width, "features", "residual", bias=True)
    return nn.Sequential(
        linear(size, width, "features", "projected", bias=True), nn.GELU(), linear(width, width, "projected", "residual", bias=True)
    )


class TokenEmbedding(nn.Embedding):
    """Rows of a table times `scale`; the table itself, which a tied head reads, is not scaled."""

    def __init__(self, rows: int, width: int, scale: float) -> None:
        super().__init__(rows, width)
        self.scale = scale

    def forward(self, ids: Tensor) -> Tensor:
        """[..., d] of ids [...]."""
        x = super().forward(ids)
        return x if self.scale == 1 else x * self.scale


class FixedNumber(nn.Module):
    """A number v as the row whose component j, from 0, is (-1)^j v / (2 floor(j / 2) + 1); nothing of it is trained.

    Source: the encodings of float numbers in the Regression Transformer, arXiv:2202.01338.
    """

    row: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("row", self._row(), persistent=False)

    def _row(self) -> Tensor:
        place = torch.arange(self.width)
        return (1 - 2 * (place % 2)) / (2 * (place // 2) + 1)

    def reset_buffers(self) -> None:
        """Compute the row anew, for a module made without memory."""
        self.row = self._row().to(self.row.device)

    def forward(self, value_bt1: Tensor) -> Tensor:
        """[b, t, d] of numbers [b, t, 1]."""
        return value_bt1 * self.row


def _rows(table: nn.Embedding, ids: Tensor) -> Tensor:
    """Rows of a table, zeros for id -1."""
    return table(ids.clamp_min(0)) * (ids >= 0).unsqueeze(-1)
