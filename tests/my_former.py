"""A model that Transformers does not know, in a user's own code, and its description.

Its layouts are those of no stock family: keys and values fused by head beside separate queries, gate and up fused by
role in the other order, both sub-layers side by side.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput

from pruning_adapter.architectures import (
    ArchitectureSpec,
    AttentionSpec,
    BlockStack,
    FeedForwardSpec,
    Follow,
    Fusion,
    Projection,
)

SPEC = ArchitectureSpec(
    family="MyFormer",
    model_types=("my_former",),
    stacks=(
        BlockStack(
            path="blocks",
            attentions=(
                AttentionSpec(
                    core="mixer",
                    projections=(
                        Projection(path="mixer.ask", roles=("query",)),
                        Projection(path="mixer.tell", roles=("key", "value"), fusion=Fusion.BY_HEAD),
                    ),
                    output="mixer.mix",
                    head_size="width",
                    follow=(Follow(module="mixer", attribute="heads", counts="heads"),),
                    returns=1,
                ),
            ),
            feed_forward=FeedForwardSpec(
                projections=(Projection(path="widen", roles=("up", "gate")),),
                output="narrow",
                follow=(Follow(module="", attribute="neurons", counts="neurons"),),
            ),
            built_by=(__name__, "MyBlock"),
        ),
    ),
    norms=("norm",),
)


class MyFormerConfig(PretrainedConfig):
    model_type = "my_former"
    vocab_size: int = 50
    size: int = 32
    heads: int = 4
    depth: int = 3
    neurons: int = 24
    longest: int = 64
    pad_token_id: int | None = 1


class MyMixer(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.heads, self.width = config.heads, config.size // config.heads
        self.ask = nn.Linear(config.size, config.size)
        self.tell = nn.Linear(config.size, 2 * config.size)
        self.mix = nn.Linear(config.size, config.size)

    def forward(self, states: Tensor, mask: Tensor | None) -> tuple[Tensor]:
        by_head = (*states.shape[:2], self.heads, -1)
        query = self.ask(states).view(by_head).transpose(1, 2)
        key, value = self.tell(states).view(by_head).transpose(1, 2).chunk(2, dim=-1)
        context = functional.scaled_dot_product_attention(query, key, value, mask)
        return (self.mix(context.transpose(1, 2).flatten(2)),)


class MyBlock(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.neurons = config.neurons
        self.norm = nn.LayerNorm(config.size)
        self.mixer = MyMixer(config)
        self.widen = nn.Linear(config.size, 2 * config.neurons)
        self.narrow = nn.Linear(config.neurons, config.size)

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        normed = self.norm(states)
        up, gate = self.widen(normed).chunk(2, dim=-1)
        (mixed,) = self.mixer(normed, mask)
        return states + mixed + self.narrow(up * functional.silu(gate))


class MyPreTrainedModel(PreTrainedModel):
    config_class = MyFormerConfig
    base_model_prefix = "trunk"
    main_input_name = "input_ids"


class MyFormerModel(MyPreTrainedModel):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.size)
        self.places = nn.Embedding(config.longest, config.size)
        self.blocks = nn.ModuleList(MyBlock(config) for _ in range(config.depth))
        self.last_norm = nn.LayerNorm(config.size)
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> BaseModelOutput:
        states = self.words(input_ids) + self.places.weight[: input_ids.shape[1]]
        every = (states,)
        mask = None if attention_mask is None else attention_mask[:, None, None].bool()
        for block in self.blocks:
            states = block(states, mask)
            every += (states,)
        return BaseModelOutput(last_hidden_state=self.last_norm(states), hidden_states=every)


class MyFormerForSequenceClassification(MyPreTrainedModel):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.trunk = MyFormerModel(config)
        self.classifier = nn.Linear(config.size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> SequenceClassifierOutput:
        outputs = self.trunk(input_ids, attention_mask)
        logits = self.classifier(outputs.last_hidden_state[:, 0])
        loss = None if labels is None else functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)
