"""transformers' ImageGPT classes with the same names and methods, over this library's network.

Code for transformers' classes works with these when its import is changed; transformers is not needed. The differences
are listed in docs/coming-from/transformers.md.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from math import isqrt
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Real
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from patchcast.backbones.imagegpt_network import Block, ImageGPT
from patchcast.backbones.precision import precision
from patchcast.files import write_text, write_weights
from patchcast.geometry import Grid
from patchcast.interop.imagegpt_weights import (
    SINGLE_LABEL,
    NoHeadWarning,
    Weights,
    from_transformers,
    options_of,
    read_config,
    to_transformers,
)
from patchcast.interop.state_dicts import load_exactly, read_folder

ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
SomeModel = TypeVar("SomeModel", bound="ImageGPTPreTrainedModel")
REGRESSION, MULTI_LABEL = "regression", "multi_label_classification"


@dataclass(init=False)
class ImageGPTConfig:
    """transformers' config of an ImageGPT, with its fields and defaults.

    >>> config = ImageGPTConfig(n_embd=32, num_hidden_layers=2, num_labels=3)
    >>> config.hidden_size, config.n_layer, config.num_labels, config.resid_pdrop
    (32, 2, 3, 0.1)

    Attributes:
        others: fields that do not change the network, stored for saving.
    Raises:
        ValueError: if a field has a value that this network does not support.
    """

    vocab_size: int = 513
    n_positions: int = 1024
    n_embd: int = 512
    n_layer: int = 24
    n_head: int = 8
    n_inner: int | None = None
    activation_function: str = "quick_gelu"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    scale_attn_weights: bool = True
    use_cache: bool = True
    tie_word_embeddings: bool = False
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False
    add_cross_attention: bool = False
    is_decoder: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    problem_type: str | None = None
    output_attentions: bool = False
    output_hidden_states: bool = False
    return_dict: bool = True
    id2label: dict[int, str] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)

    def __init__(self, **values: Any) -> None:
        values = {ALIASES.get(name, name): value for name, value in values.items()}
        labels = values.pop("num_labels", None) or len(values.get("id2label") or ()) or 2
        names = values.pop("id2label", None) or {}
        values.pop("label2id", None)
        for option in fields(self):
            if option.name not in ("id2label", "others"):
                setattr(self, option.name, values.pop(option.name, option.default))
        self.id2label = (
            {int(label): name for label, name in names.items()}
            if len(names) == labels
            else {label: f"LABEL_{label}" for label in range(labels)}
        )
        self.others = values
        if self.add_cross_attention:
            raise ValueError("add_cross_attention=True is not supported: this network attends to the image only")
        if self.problem_type not in (None, REGRESSION, SINGLE_LABEL, MULTI_LABEL):
            raise ValueError(
                f"problem_type is one of {REGRESSION}, {SINGLE_LABEL}, {MULTI_LABEL} or None; got {self.problem_type!r}"
            )

    num_labels = property(lambda self: len(self.id2label))
    label2id = property(lambda self: {name: label for label, name in self.id2label.items()})
    hidden_size = property(lambda self: self.n_embd)
    max_position_embeddings = property(lambda self: self.n_positions)
    num_attention_heads = property(lambda self: self.n_head)
    num_hidden_layers = property(lambda self: self.n_layer)

    def to_dict(self) -> dict[str, Any]:
        """As `config.json` has it."""
        own = {option.name: getattr(self, option.name) for option in fields(self) if option.name != "others"}
        return {"model_type": "imagegpt", **self.others, **own, "label2id": self.label2id}


@dataclass
class MappingOutput(Mapping[str, Any]):
    """The output of a model, by attribute, name or index; entries that are None have no name and no index."""

    def __getitem__(self, which: Any) -> Any:
        return getattr(self, which) if isinstance(which, str) else self.to_tuple()[which]

    def __iter__(self) -> Iterator[str]:
        return (option.name for option in fields(self) if getattr(self, option.name) is not None)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self)


@dataclass
class ModelOutput(MappingOutput):
    """The output of `ImageGPTModel`."""

    last_hidden_state: Tensor
    past_key_values: Any = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class HeadOutput(MappingOutput):
    """The output of a model with a head."""

    loss: Tensor | None
    logits: Tensor
    past_key_values: Any = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class Layer:
    """Keys and values of one block, (B, heads, places, channels of a head)."""

    keys: Tensor
    values: Tensor


class DynamicCache:
    """Growing keys and values of all blocks, with gradients. transformers' own cache is accepted too."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        if layer == len(self.layers):
            self.layers.append(Layer(keys, values))
        else:
            stored = self.layers[layer]
            stored.keys = torch.cat([stored.keys, keys], dim=2)
            stored.values = torch.cat([stored.values, values], dim=2)
        return self.layers[layer].keys, self.layers[layer].values

    def get_seq_length(self) -> int:
        return self.layers[0].keys.shape[2] if self.layers else 0


class ImageGPTPreTrainedModel(nn.Module):
    """The base of the three classes: reads and writes transformers' folders."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        # transformers' own config writes the same.
        self.config = config if isinstance(config, ImageGPTConfig) else ImageGPTConfig(**config.to_dict())
        self.gradient_checkpointing = False

    @property
    def trunk(self) -> ImageGPTModel:
        """The model without a head."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        return self.trunk.network.positions.device

    @property
    def dtype(self) -> torch.dtype:
        return self.trunk.network.positions.dtype

    def gradient_checkpointing_enable(self, **_: Any) -> None:
        self.trunk.gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        self.trunk.gradient_checkpointing = False

    @torch.no_grad()
    def start(self) -> None:
        """transformers' initialization: normal weights, with a smaller deviation for layers that end a branch in deeper
        networks, and 0.02 for the other matrices of blocks, whatever the config's `initializer_range`."""
        config = self.config
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(1)
            elif name.endswith(("attn.qkv.weight", "mlp.fc1.weight")):
                parameter.normal_(std=0.02)
            else:
                ends_branch = name.endswith(("attn.proj.weight", "mlp.fc2.weight"))
                parameter.normal_(std=config.initializer_range / (2 * config.n_layer if ends_branch else 1) ** 0.5)

    @classmethod
    def from_pretrained(
        cls: type[SomeModel],
        folder: str | Path,
        *,
        config: Any = None,
        dtype: torch.dtype | None = None,
        ignore_mismatched_sizes: bool = False,
        **values: Any,
    ) -> SomeModel:
        """Read a local folder of any of the three classes, in eval mode.

        Args:
            config: used instead of the folder's.
            dtype: of the weights; the file's if None.
            ignore_mismatched_sizes: initialize a head whose size in the folder differs.
            values: fields of the config that override the folder's, such as `num_labels`.
        Raises:
            ValueError: if the weights do not fit.
        """
        if config is None:
            saved = read_config(Path(folder))
            if "num_labels" in values:
                saved.pop("id2label", None)
            config = ImageGPTConfig(**{**saved, **values})
        elif values:
            raise ValueError(f"give either a config or {', '.join(values)}")
        weights = from_transformers(read_folder(Path(folder)))
        model = cls(config)
        model.take(weights, str(folder), ignore_mismatched_sizes)
        return model.to(dtype or weights.network["positions"].dtype).eval()

    @classmethod
    def from_state_dict(cls: type[SomeModel], state: Mapping[str, Tensor], config: Any) -> SomeModel:
        """Build from transformers' `theirs.state_dict(), theirs.config`, in eval mode."""
        model = cls(config)
        model.take(from_transformers(state), "the state", False)
        return model.eval()

    def take(self, weights: Weights, source: str, ignore_mismatched_sizes: bool) -> None:
        """Load the network, and the head if there is one for this class."""
        network = self.trunk.network
        # Biases that are all zero have been left out.
        absent = {name: torch.zeros_like(own) for name, own in network.state_dict().items() if name.endswith("bias")}
        load_exactly(network, {**absent, **weights.network}, source=source)
        head, saved_head = self.head_of(weights)
        if head is None:
            return
        fits = saved_head is not None and saved_head.shape == head.weight.shape
        if saved_head is None or (ignore_mismatched_sizes and not fits):
            message = f"{source} has no head for {type(self).__name__}: it is newly initialized"
            warnings.warn(message, NoHeadWarning, stacklevel=4)
        else:
            load_exactly(head, {"weight": saved_head}, source=f"the head of {source}")

    def head_of(self, weights: Weights) -> tuple[nn.Linear | None, Tensor | None]:
        """The head of this class, if it has one, and its weights among those given."""
        raise NotImplementedError

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Write `config.json` and `model.safetensors` for transformers' class of the same name."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {**self.config.to_dict(), "architectures": [type(self).__name__]}
        config["dtype"] = str(self.dtype).removeprefix("torch.")
        write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
        state = {name: value.detach().cpu().contiguous() for name, value in self.to_transformers().items()}
        write_weights(state, folder / "model.safetensors")

    def to_transformers(self) -> dict[str, Tensor]:
        """The weights with the names of transformers' class, for its `load_state_dict`."""
        return to_transformers(Weights(self.trunk.network.state_dict(), **self.heads()))

    def heads(self) -> dict[str, Tensor]:
        """The weights of this class's head, by their name in `Weights`."""
        return {}


class ImageGPTModel(ImageGPTPreTrainedModel):
    """The network: features of every input position. See transformers' `ImageGPTModel` for the arguments.

    >>> model = ImageGPTModel(ImageGPTConfig(n_embd=32, n_layer=2, n_head=4, n_positions=16, vocab_size=9))
    >>> model(torch.zeros(3, 16, dtype=torch.long)).last_hidden_state.shape
    torch.Size([3, 16, 32])
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        config = self.config
        side = isqrt(config.n_positions)
        grid = Grid(side, side) if side * side == config.n_positions else Grid(1, config.n_positions)
        self.network = ImageGPT(
            grid,
            config.vocab_size - 1,
            depth=config.n_layer,
            width=config.n_embd,
            heads=config.n_head,
            mlp_width=config.n_inner,
            bias=True,
            **options_of(config.to_dict()),
        )
        self.start()

    @property
    def trunk(self) -> ImageGPTModel:
        return self

    def head_of(self, weights: Weights) -> tuple[nn.Linear | None, Tensor | None]:
        return None, None

    def to_transformers(self) -> dict[str, Tensor]:
        return {name.removeprefix("transformer."): value for name, value in super().to_transformers().items()}

    @property
    def table(self) -> Float[Tensor, "V D"]:
        """The embeddings of the codes, followed by that of the start token."""
        assert self.network.start is not None
        return torch.cat([self.network.codes.weight, self.network.start[None]])

    def forward(
        self,
        input_ids: Int[Tensor, "*B L"] | None = None,
        past_key_values: Any = None,
        attention_mask: Real[Tensor, "B S"] | None = None,
        token_type_ids: Int[Tensor, "*B L"] | None = None,
        position_ids: Int[Tensor, "... L"] | None = None,
        inputs_embeds: Float[Tensor, "B L D"] | None = None,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """
        Raises:
            ValueError: if both or neither of `input_ids` and `inputs_embeds` are given, the input is longer than the
                number of positions, or there is another sequence to attend to.
        """
        config = self.config
        use_cache = config.use_cache if use_cache is None else use_cache
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return_dict = config.return_dict if return_dict is None else return_dict
        if encoder_hidden_states is not None or encoder_attention_mask is not None:
            raise ValueError("this network attends to the image only: leave out encoder_hidden_states")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds, not both")
        x = F.embedding(input_ids, self.table) if input_ids is not None else inputs_embeds
        assert x is not None
        shape, x = x.shape, x.flatten(0, -3)
        is_checkpointing = self.gradient_checkpointing and self.training
        if use_cache and past_key_values is None and not is_checkpointing:
            past_key_values = DynamicCache()
        at = 0 if past_key_values is None else past_key_values.get_seq_length()
        places = at + x.shape[1]
        if places > config.n_positions:
            raise ValueError(f"this network has {config.n_positions} positions; the input has {places}")
        if position_ids is None:
            position_ids = torch.arange(at, places, device=x.device)
        x = x + self.network.positions[position_ids]
        if token_type_ids is not None:
            x = x + F.embedding(token_type_ids.view(-1, x.shape[1]), self.table)
        x = self.network.embed_drop(x)
        is_plain = attention_mask is None and at == 0 and not output_attentions
        mask = None if is_plain else self.mask(x, at, attention_mask)
        states: tuple[Tensor, ...] = ()
        attentions: tuple[Tensor, ...] = ()
        for layer, block in enumerate(self.network.blocks):
            assert isinstance(block, Block)
            states += (x,)
            args = (block, x, past_key_values, layer, mask, output_attentions)
            x, weights = checkpoint(_run, *args, use_reentrant=False) if is_checkpointing else _run(*args)
            if weights is not None:
                attentions += (weights,)
        x = self.network.norm(x).view(shape)
        output = ModelOutput(
            x,
            past_key_values if use_cache or at else None,
            (*states, x) if output_hidden_states else None,
            attentions if output_attentions else None,
        )
        return output if return_dict else output.to_tuple()

    def mask(self, x: Tensor, at: int, attention_mask: Tensor | None) -> Float[Tensor, "#B 1 L S"]:
        """The additive mask: 0 where a query may attend to a key, else the smallest number of the dtype.

        The causal mask and the padding mask are added as in transformers, so that a query that may attend to nothing
        gets the same result.
        """
        dtype = precision(x)
        least = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=x.device)  # no copy from the CPU
        nothing = torch.zeros_like(least)
        ones = torch.ones(x.shape[1], at + x.shape[1], dtype=torch.bool, device=x.device)
        in_order = ones.tril(at)[None, None]
        mask = torch.where(in_order, nothing, least)
        if attention_mask is None:
            return mask
        is_seen = attention_mask.reshape(len(x), 1, 1, -1).bool()
        if self.config.is_decoder:
            is_seen = is_seen & in_order
        return mask + torch.where(is_seen, nothing, least)


class ImageGPTForCausalImageModeling(ImageGPTPreTrainedModel):
    """The network with a head that predicts the next code.

    >>> config = ImageGPTConfig(n_embd=32, n_layer=2, n_head=4, n_positions=16, vocab_size=9)
    >>> model, ids = ImageGPTForCausalImageModeling(config).eval(), torch.full((2, 1), 8)  # the start token
    >>> model(ids, labels=ids).logits.shape, model.generate(ids, max_length=17).shape
    (torch.Size([2, 1, 8]), torch.Size([2, 17]))
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.transformer = ImageGPTModel(self.config)
        is_tied = self.config.tie_word_embeddings
        self.lm_head = None if is_tied else nn.Linear(self.config.n_embd, self.config.vocab_size - 1, bias=False)
        if self.lm_head is not None:
            nn.init.normal_(self.lm_head.weight, std=self.config.initializer_range)

    @property
    def trunk(self) -> ImageGPTModel:
        return self.transformer

    def head_of(self, weights: Weights) -> tuple[nn.Linear | None, Tensor | None]:
        return self.lm_head, weights.head

    def heads(self) -> dict[str, Tensor]:
        return {} if self.lm_head is None else {"head": self.lm_head.weight}

    def forward(self, input_ids: Tensor | None = None, *args: Any, labels: Tensor | None = None, **options: Any) -> Any:
        """As `ImageGPTModel`, and with `labels` the loss. As in transformers, it shifts them, so that the first label
        is never predicted."""
        return_dict = options.pop("return_dict", None)
        base = self.transformer(input_ids, *args, **options, return_dict=True)
        x = base.last_hidden_state
        logits = F.linear(x, self.transformer.table) if self.lm_head is None else self.lm_head(x)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[..., :-1, :].flatten(0, -2), labels[..., 1:].flatten())
        return _with_head(self.config, base, loss, logits, return_dict)

    @torch.no_grad()
    def generate(
        self,
        inputs: Int[Tensor, "B P"] | None = None,
        *,
        input_ids: Int[Tensor, "B P"] | None = None,
        max_length: int | None = None,
        max_new_tokens: int | None = None,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int | None = 50,
        top_p: float = 1.0,
    ) -> Int[Tensor, "B L"]:
        """Continue sequences of codes, greedily or by sampling.

        Defaults are transformers', and so are the samples after the same `torch.manual_seed`.
        `patchcast.drawing.generation.sample` and `complete` are faster.

        Raises:
            ValueError: if there is no input, or the length is missing or exceeds the number of positions.
        """
        ids = input_ids if inputs is None else inputs
        if ids is None or (max_length is None) == (max_new_tokens is None):
            raise ValueError("generate needs input_ids, of the start token at least, and max_length or max_new_tokens")
        length = max_length or ids.shape[1] + (max_new_tokens or 0)
        if length > self.config.n_positions + 1:
            raise ValueError(f"{length} codes are too many; start token and image are {self.config.n_positions + 1}")
        past, latest = DynamicCache(), ids
        while ids.shape[1] < length:
            scores = self(latest, past_key_values=past, use_cache=True, return_dict=True).logits[:, -1].float()
            latest = _choose(scores, temperature, top_k, top_p) if do_sample else scores.argmax(-1, keepdim=True)
            ids = torch.cat([ids, latest], dim=1)
        return ids


class ImageGPTForImageClassification(ImageGPTPreTrainedModel):
    """The network with a linear head on its mean feature, for one class, several labels, or regression.

    >>> config = ImageGPTConfig(n_embd=32, n_layer=2, n_head=4, n_positions=16, vocab_size=9, num_labels=3)
    >>> model = ImageGPTForImageClassification(config)
    >>> output = model(torch.zeros(2, 16, dtype=torch.long), labels=torch.tensor([0, 2]))
    >>> output.logits.shape, output.loss.shape
    (torch.Size([2, 3]), torch.Size([]))
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.transformer = ImageGPTModel(self.config)
        self.score = nn.Linear(self.config.n_embd, self.config.num_labels, bias=False)
        nn.init.normal_(self.score.weight, std=self.config.initializer_range)

    @property
    def trunk(self) -> ImageGPTModel:
        return self.transformer

    def head_of(self, weights: Weights) -> tuple[nn.Linear | None, Tensor | None]:
        return self.score, weights.score

    def heads(self) -> dict[str, Tensor]:
        return {"score": self.score.weight}

    def forward(self, input_ids: Tensor | None = None, *args: Any, labels: Tensor | None = None, **options: Any) -> Any:
        """As `ImageGPTModel`, and with `labels` the loss of the config's `problem_type`: cross-entropy of one class,
        binary cross-entropy of several labels, or the mean squared error. If the config has none, it is inferred from
        the labels and stored."""
        return_dict = options.pop("return_dict", None)
        base = self.transformer(input_ids, *args, **options, return_dict=True)
        logits = self.score(base.last_hidden_state.mean(dim=1))
        loss = None if labels is None else self.loss(logits, labels.to(logits.device))
        return _with_head(self.config, base, loss, logits, return_dict)

    def loss(self, logits: Float[Tensor, "B K"], labels: Tensor) -> Float[Tensor, ""]:
        config = self.config
        if config.problem_type is None:
            is_class = labels.dtype in (torch.long, torch.int)
            config.problem_type = REGRESSION if config.num_labels == 1 else SINGLE_LABEL if is_class else MULTI_LABEL
        if config.problem_type == SINGLE_LABEL:
            return F.cross_entropy(logits, labels.flatten())
        if config.problem_type == MULTI_LABEL:
            return F.binary_cross_entropy_with_logits(logits, labels)
        return F.mse_loss(logits, labels.view_as(logits))


def _run(
    block: Block, x: Tensor, past: Any, layer: int, mask: Tensor | None, output_attentions: bool
) -> tuple[Tensor, Tensor | None]:
    """Run a block, with cached keys and values if given; also returns its attention weights if requested."""
    attn, weights = block.attn, None
    q, k, v = attn.split(block.norm1(x))
    if past is not None:
        k, v = past.update(k, v, layer)
    if output_attentions:
        weights = attn.weigh(q, k, mask)
        mixed = weights @ v
    else:
        mixed = attn.attend(q, k, v, mask, is_causal=mask is None)
    x = x + attn.merge(mixed)
    return x + block.mlp(block.norm2(x)), weights


def _with_head(
    config: ImageGPTConfig, base: ModelOutput, loss: Tensor | None, logits: Tensor, return_dict: bool | None
) -> Any:
    output = HeadOutput(loss, logits, base.past_key_values, base.hidden_states, base.attentions)
    return output if (config.return_dict if return_dict is None else return_dict) else output.to_tuple()


def _choose(scores: Float[Tensor, "B K"], temperature: float, top_k: int | None, top_p: float) -> Int[Tensor, "B 1"]:
    scores = scores / temperature
    if top_k:
        least = scores.topk(min(top_k, scores.shape[-1]), dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if top_p < 1:
        ordered, where = scores.sort(dim=-1)
        is_rest = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        is_rest[:, -1] = False
        scores = scores.masked_fill(is_rest.scatter(1, where, is_rest), -torch.inf)
    return torch.multinomial(scores.softmax(dim=-1), 1)
