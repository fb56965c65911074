import pytest
import torch
from torch import nn

from capture.sites import Site, discover_sites, match_layers
from ndt_store.errors import CaptureError, InvalidInputError

from .model_zoo import (
    MLP,
    Conv1dNet,
    Detour,
    EmbeddingNet,
    ResidualCNN,
    SDPABlock,
    SelfAttention,
    Structured,
    TokenClassifier,
    TokensFirst,
    seeded,
)

torch.set_num_threads(1)


def by_name(sites: tuple[Site, ...]) -> dict[str, Site]:
    return {site.name: site for site in sites}


class Function(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Then(nn.Module):
    """A module under the name `odd`, then class logits from the input."""

    def __init__(self, odd: nn.Module) -> None:
        super().__init__()
        self.odd = odd

    def forward(self, x):
        self.odd(x)
        return x.flatten(1)[:, :3].float()


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("net.*", ["net.0", "net.1", "net.2", "net.3", "net.4"]),
        ("*", ["net"]),
        ("**", ["net", "net.0", "net.1", "net.2", "net.3", "net.4"]),
        ("**.0", ["net.0"]),
        ("net.**", ["net", "net.0", "net.1", "net.2", "net.3", "net.4"]),
        ("n?t.[13]", ["net.1", "net.3"]),
    ],
)
def test_match_layers__star_stays_in_a_component_and_two_stars_cross(pattern, expected):
    assert list(match_layers(MLP(), [pattern])) == expected


def test_match_layers__gives_module_order_and_each_once():
    assert match_layers(ResidualCNN(), ["head", "conv", "c*", "stem"]) == ("stem", "conv", "head")


def test_match_layers__names_the_pattern_and_close_names():
    with pytest.raises(InvalidInputError, match=r"'conw'.*close names are conv"):
        match_layers(ResidualCNN(), ["stem", "conw"])


def test_match_layers__raises_without_patterns():
    with pytest.raises(InvalidInputError, match="no pattern"):
        match_layers(MLP(), [])


def test_match_layers__finds_a_shared_module_under_each_of_its_paths():
    layer = nn.Linear(3, 3)
    assert match_layers(nn.Sequential(layer, nn.ReLU(), layer), ["2"]) == ("0",)


def test_discover_sites__names_axes_of_convolutions_and_linear_layers():
    sites = by_name(discover_sites(ResidualCNN(), ["**"], ["activations"], torch.randn(4, 2, 5, 7)))
    assert sites["conv"].dims == ("example", "unit", "y", "x")
    assert sites["conv"].shape == (4, 5, 7)
    assert (sites["head"].dims, sites["head"].shape) == (("example", "unit"), (3,))
    assert sites["head"].dtype == "float32"
    assert sites["head"].module_type == "Linear"


def test_discover_sites__keeps_firings_of_one_module_apart():
    sites = discover_sites(ResidualCNN(), ["relu"], ["activations", "gradients"], torch.randn(4, 2, 5, 5))
    assert [(site.name, site.kind) for site in sites] == [
        ("relu#0", "activations"),
        ("relu#0", "gradients"),
        ("relu#1", "activations"),
        ("relu#1", "gradients"),
    ]


def test_discover_sites__clones_only_what_is_written_to_later():
    sites = by_name(discover_sites(ResidualCNN(), ["**"], ["activations"], torch.randn(4, 2, 5, 5)))
    assert {name for name, site in sites.items() if site.clone} == {"stem", "norm"}


def test_discover_sites__sees_writes_that_no_version_counts():
    def write(x):
        x.data.mul_(2)
        return x

    net = nn.Sequential(nn.Linear(4, 4), Function(write), nn.Linear(4, 3))
    sites = by_name(discover_sites(net, ["0"], ["activations"], torch.randn(3, 4)))
    assert sites["0"].clone


def test_discover_sites__activations_after_a_1d_convolution_keep_units_first():
    sites = by_name(discover_sites(Conv1dNet(), ["**"], ["activations"], torch.randn(4, 2, 8)))
    assert {sites[name].dims for name in ("block", "block.0", "block.1", "block.2", "block.3")} == {
        ("example", "unit", "x")
    }
    assert sites["block"].shape == (4, 4)


def test_discover_sites__transposes_modules_that_put_tokens_first():
    sites = by_name(discover_sites(TokensFirst(), ["**"], ["activations"], torch.randn(3, 5, 8)))
    for name in ("encoder", "encoder.self_attn", "encoder.linear1", "encoder.norm2", "rnn"):
        assert sites[name].dims == ("example", "token", "unit"), name
        assert sites[name].shape[0] == 5, name
        assert sites[name].axes == (1, 0, 2), name


def test_discover_sites__tokens_first_is_told_even_where_sizes_agree():
    sites = by_name(discover_sites(TokensFirst(), ["rnn"], ["activations"], torch.randn(3, 3, 8)))
    assert sites["rnn"].axes == (1, 0, 2)


def test_discover_sites__passes_over_containers_that_never_run():
    net = TokenClassifier(nn.TransformerEncoder(_encoder_layer(), 2, enable_nested_tensor=False))
    names = by_name(discover_sites(net, ["**"], ["activations"], torch.randn(3, 5, 8)))
    assert "body.layers" not in names
    assert "body.layers.1.self_attn" in names


def _encoder_layer():
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


def test_discover_sites__raises_when_a_pattern_names_only_a_container():
    net = TokenClassifier(nn.TransformerEncoder(_encoder_layer(), 2, enable_nested_tensor=False))
    with pytest.raises(CaptureError, match=r"'body.layers'.*none of which runs"):
        discover_sites(net, ["body.layers", "head"], ["activations"], torch.randn(3, 5, 8))


def test_discover_sites__takes_the_first_tensor_of_a_structure():
    sites = by_name(discover_sites(Structured(), ["inner"], ["activations"], torch.randn(3, 4)))
    assert sites["inner"].shape == (4,)


def test_discover_sites__takes_integer_inputs_and_one_example():
    sites = by_name(discover_sites(EmbeddingNet(), ["embed"], ["gradients"], torch.zeros(1, 7, dtype=torch.int64)))
    assert (sites["embed"].dims, sites["embed"].shape) == (("example", "token", "unit"), (7, 6))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float64, "float64"),
        (torch.float32, "float32"),
        (torch.float16, "float16"),
        (torch.bfloat16, "float32"),
    ],
)
def test_discover_sites__states_the_type_handed_out(dtype, expected):
    sites = discover_sites(MLP().to(dtype), ["net.0"], ["activations"], torch.randn(3, 6, dtype=dtype))
    assert sites[0].dtype == expected


def test_discover_sites__dims_can_be_given_and_come_out_in_canonical_order():
    net = Then(Function(lambda x: x.permute(0, 2, 3, 1)))
    sites = discover_sites(
        net, ["odd"], ["activations"], torch.randn(3, 2, 4, 5), dims={"odd": ("example", "y", "x", "unit")}
    )
    assert sites[0].dims == ("example", "unit", "y", "x")
    assert sites[0].shape == (2, 4, 5)


def test_discover_sites__channels_last_spreads_from_linear_to_what_follows():
    body = nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.LayerNorm(4))
    sites = discover_sites(Then(body), ["odd", "odd.*"], ["activations"], torch.randn(3, 5, 7, 6))
    assert {site.shape for site in sites} == {(4, 5, 7)}


def test_discover_sites__a_permutation_that_names_its_axes_is_followed():
    class Permute(Function):
        dims = (0, 2, 3, 1)

    body = nn.Sequential(nn.Conv2d(2, 4, 1), Permute(lambda x: x.permute(0, 2, 3, 1)), nn.GELU())
    sites = by_name(discover_sites(Then(body), ["odd.*"], ["activations"], torch.randn(3, 2, 5, 7)))
    assert {site.shape for site in sites.values()} == {(4, 5, 7)}
    assert sites["odd.1"].axes == (0, 3, 1, 2)


def test_discover_sites__volumes_have_z_y_x():
    sites = discover_sites(Then(nn.Conv3d(1, 2, 1)), ["odd"], ["activations"], torch.randn(3, 1, 4, 5, 6))
    assert sites[0].dims == ("example", "unit", "z", "y", "x")


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (Function(lambda x: x.argmax(-1)), "torch.int64 where floating point"),
        (Function(lambda x: torch.complex(x, x)), "torch.complex64 where floating point"),
        (Function(lambda x: None), "returned no tensor"),
        (Function(lambda x: x.reshape(-1, x.shape[-1])), r"emits shape \(12, 6\) for 3 examples and \(8, 6\)"),
        (Function(lambda x: torch.ones(1, 4, 6)), "exactly one axis"),
        (Function(lambda x: x.flatten(1).sum(1)), "whose axes neither"),
        (nn.Flatten(2), "whose axes neither"),
    ],
    ids=["integers", "complex", "nothing", "folded", "constant", "no-units", "rearranged"],
)
def test_discover_sites__raises_on_outputs_it_cannot_label(odd, message):
    inputs = torch.randn(3, 4, 2, 3) if isinstance(odd, nn.Flatten) else torch.randn(3, 4, 6)
    with pytest.raises(CaptureError, match=message):
        discover_sites(Then(odd), ["odd"], ["activations"], inputs)


def test_discover_sites__raises_where_evidence_disagrees():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv1d(4, 4, 1), nn.Linear(6, 6)

        def forward(self, x):
            return torch.cat([self.linear(self.conv(x)), x], 1)

    with pytest.raises(CaptureError, match=r"dims=\{'odd': \(\.\.\.\)\}"):
        discover_sites(Then(nn.Sequential(Mixed())), ["odd"], ["activations"], torch.randn(3, 4, 6))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("example", "unit", "y"), "one name an axis"),
        (("unit", "example", "y", "x"), "one name an axis"),
        (("example", "y", "x", "channel"), "were expected"),
        (("example", "unit", "y", "y"), "were expected"),
    ],
)
def test_discover_sites__raises_on_dims_that_do_not_fit(names, message):
    with pytest.raises(InvalidInputError, match=message):
        discover_sites(ResidualCNN(), ["conv"], ["activations"], torch.randn(3, 2, 5, 5), dims={"conv": names})


def test_discover_sites__raises_on_unknown_kind():
    with pytest.raises(InvalidInputError, match="activation"):
        discover_sites(MLP(), ["net.*"], ["activation"], torch.randn(3, 6))


def test_discover_sites__says_how_the_model_failed():
    with pytest.raises(CaptureError, match=r"MLP failed on a probing batch of 3 .*RuntimeError") as caught:
        discover_sites(MLP(), ["net.*"], ["activations"], torch.randn(3, 7))
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_discover_sites__raises_on_batch_statistics_under_gradients_only():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3))
    assert discover_sites(net, ["0"], ["activations"], torch.randn(3, 4))
    with pytest.raises(CaptureError, match=r"'1' \(BatchNorm1d\)"):
        discover_sites(net, ["0"], ["activations", "gradients"], torch.randn(3, 4))


def test_discover_sites__raises_where_examples_influence_each_other():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Function(lambda x: x - x.mean(0)), nn.Linear(4, 3))
    with pytest.raises(CaptureError, match=r"module '1' \(ReLU\).*influence"):
        discover_sites(net, ["0", "1", "3"], ["gradients"], torch.randn(3, 4))


def test_discover_sites__raises_where_a_tap_would_change_the_model():
    class Aliasing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.same, self.head = nn.Identity(), nn.Linear(4, 3)

        def forward(self, x):
            x = x * 2
            same = self.same(x)
            same.add_(1)
            return self.head(x)

    with pytest.raises(CaptureError, match="another output when its layers are tapped"):
        discover_sites(Aliasing(), ["same"], ["activations"], torch.randn(3, 4))


def test_discover_sites__raises_where_the_model_is_not_deterministic():
    torch.manual_seed(0)
    state = iter(range(100))
    net = nn.Sequential(Function(lambda x: x + next(state)), nn.Linear(4, 3))
    with pytest.raises(CaptureError, match="another output|other values"):
        discover_sites(net, ["0"], ["activations"], torch.randn(3, 4))


def test_discover_sites__marks_modules_that_hand_on_their_input():
    sites = by_name(discover_sites(Detour(), ["same", "first"], ["activations"], torch.randn(3, 4)))
    assert sites["same"].hands_on
    assert not sites["first"].hands_on


def test_discover_sites__attentions_belong_to_the_module_that_made_the_call():
    net = TokenClassifier(nn.Sequential(SDPABlock(), SDPABlock(heads=2, key_heads=2)))
    sites = discover_sites(net, ["body.*"], ["attentions"], torch.randn(3, 5, 8))
    assert [(site.name, site.dims, site.shape) for site in sites] == [
        ("body.0", ("example", "head", "query", "key"), (4, 5, 5)),
        ("body.1", ("example", "head", "query", "key"), (2, 5, 5)),
    ]


def test_discover_sites__lists_the_modules_that_attend_when_none_named_does():
    with pytest.raises(CaptureError, match="some of those that do: body.attn"):
        discover_sites(TokenClassifier(SelfAttention()), ["head", "body"], ["attentions"], torch.randn(3, 5, 8))


def test_discover_sites__says_so_when_nothing_attends():
    with pytest.raises(CaptureError, match="none of the model's modules does"):
        discover_sites(MLP(), ["net.*"], ["attentions"], torch.randn(3, 6))


def test_discover_sites__raises_when_the_number_of_firings_depends_on_the_batch():
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x):
            for _ in range(x.shape[0]):
                x = self.linear(x)
            return x

    with pytest.raises(CaptureError, match="runs 3 times for 3 examples and 2 times for 2"):
        discover_sites(Loop(), ["linear"], ["activations"], torch.randn(3, 3))


def test_site__is_frozen_and_hashable():
    site = discover_sites(seeded(MLP), ["net.0"], ["activations"], torch.randn(3, 6))[0]
    assert hash(site) == hash(discover_sites(seeded(MLP), ["net.0"], ["activations"], torch.randn(3, 6))[0])
    with pytest.raises(AttributeError):
        site.name = "other"
