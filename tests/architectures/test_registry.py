"""Descriptions of families: what they refuse to say, and how they are found."""

from dataclasses import replace
from typing import Any, cast

import pytest

from pruning_adapter.architectures import registry
from pruning_adapter.architectures.registry import find_spec, on_register, register, registered, supported_model_types
from pruning_adapter.architectures.spec import ArchitectureSpec, AttentionSpec, Follow, Projection
from pruning_adapter.errors import ArchitectureError


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the registry, so that no test leaves a family behind; nobody listens to it."""
    monkeypatch.setattr(registry, "_SPECS", dict(registry._SPECS))
    monkeypatch.setattr(registry, "_LISTENERS", [])


def another_family(*model_types: str) -> ArchitectureSpec:
    return replace(find_spec("bert"), family="Another", model_types=model_types)


def test_the_first_families_are_known() -> None:
    assert {"bert", "roberta", "electra", "distilbert"} <= set(supported_model_types())
    assert list(supported_model_types()) == sorted(supported_model_types())
    assert all(find_spec(name) in registered() for name in supported_model_types())


def test_an_unknown_type_lists_the_supported_ones() -> None:
    listed = f"Model type 'xyz' is not supported. Supported: {', '.join(supported_model_types())}. "
    with pytest.raises(ArchitectureError, match=f"^{listed}Another family can be described in your own code"):
        find_spec("xyz")


@pytest.mark.parametrize(("given", "meant"), [("brt", "bert"), ("distillbert", "distilbert"), ("robertta", "roberta")])
def test_an_unknown_type_guesses_what_was_meant(given: str, meant: str) -> None:
    with pytest.raises(ArchitectureError, match=rf"'{given}' is not supported\. Did you mean '{meant}'\? Supported: "):
        find_spec(given)


@pytest.mark.usefixtures("own_registry")
def test_a_registered_family_is_found_by_each_of_its_types() -> None:
    spec = register(another_family("one", "two"))
    assert find_spec("one") is find_spec("two") is spec
    assert registered().count(spec) == 1


@pytest.mark.usefixtures("own_registry")
def test_a_second_description_of_a_type_is_refused_and_leaves_no_trace() -> None:
    before = registered(), supported_model_types()
    with pytest.raises(ArchitectureError, match=r"'bert' is already described by the family 'BERT'; give your .* own"):
        register(another_family("one", "bert"))
    assert (registered(), supported_model_types()) == before


@pytest.mark.usefixtures("own_registry")
def test_listeners_hear_of_families_known_already_and_of_those_to_come() -> None:
    known, heard = registered(), list[ArchitectureSpec]()
    on_register(heard.append)
    spec = register(another_family("one"))
    assert heard == [*known, spec]


def test_an_attribute_that_follows_must_count_something_known() -> None:
    with pytest.raises(ArchitectureError, match=r"'head'; .* one of heads, key_value_heads, rows, heads_per_group"):
        Follow(module="attention", attribute="num_heads", counts="head")


@pytest.mark.parametrize(
    ("roles", "covered"),
    [
        pytest.param([("query",), ("key",)], r"\['key', 'query'\]", id="no value"),
        pytest.param([("query", "key", "value"), ("value",)], r"\['key', 'query', 'value', 'value'\]", id="two values"),
        pytest.param([("query",), ("key",), ("values",)], r"\['key', 'query', 'values'\]", id="misspelt"),
        pytest.param([], r"\[\]", id="nothing"),
    ],
)
def test_projections_must_cover_each_role_once(roles: list[tuple[str, ...]], covered: str) -> None:
    projections = tuple(Projection(path=f"p{number}", roles=named) for number, named in enumerate(roles))
    with pytest.raises(ArchitectureError, match=rf"'core' cover the roles {covered}; .* each be covered once"):
        AttentionSpec(core="core", projections=projections, output="out", head_size="size")


def test_the_output_projection_lies_in_the_attention_or_beside_it() -> None:
    bert, distilbert = (find_spec(name).stacks[0].attentions[0] for name in ("bert", "distilbert"))
    assert bert.output_in_core is None
    assert distilbert.output_in_core == "out_lin"
    # "attention.self" starts like "attention.selfish.dense" and does not contain it.
    assert replace(bert, output="attention.selfish.dense").output_in_core is None


def test_an_unknown_fused_layout_is_refused() -> None:
    with pytest.raises(
        ArchitectureError, match=r"rows of 'qkv' are said to be fused 'at random'; use Fusion\.BY_ROLE or"
    ):
        Projection(path="qkv", roles=("query", "key", "value"), fusion=cast(Any, "at random"))
