"""CRLC's loss against the same, head by head, from the formulas; and what each of its settings
does."""

import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from test_losses import (
    LOOP_CRITICS,
    loop_covariance,
    loop_entropy,
    loop_feature_contrast,
    loop_info_nce,
    loop_views_contrast,
)
from torch import nn

from reproduce import ConfigError, fit
from reproduce.config import Config
from reproduce.methods import METHODS
from reproduce.methods.base import HeadsLinear, heads_mlp
from reproduce.methods.crlc import CRLC
from reproduce.networks import backbones

B, K = 6, 4
SMALL = dict(width=3, n_heads=2, head_hidden=7, projection_dim=5, batch_size=B)


def made(**settings):
    """A CRLC of few units in float64, the same weights whatever the loss; two views of six
    images."""
    torch.manual_seed(0)
    config = Config.from_params({**SMALL, **settings})
    method = CRLC(config, backbones.build(config, 1), K, 100).double().train()
    assert method.before_epoch(1, None) == {}
    for (
        p
    ) in method.heads.parameters():  # logits of some size, so that clamp and confidence play a part
        p.data *= 3
    return method, torch.rand(2, B, 1, 8, 8, dtype=torch.float64)


def loss_of(method, views):
    return method.loss([*views], torch.arange(B))


def passes(config):
    """Which images batch norm sees together, as indices into both views' images one after the
    other."""
    share = B // config.batchnorm_split
    for device in range(config.batchnorm_split):
        mine = list(range(device * share, (device + 1) * share))
        other = [B + i for i in mine]
        yield from ([mine, other] if config.views == "apart" else [mine + other])


def from_the_formulas(method, views):
    """lambda2 FC + mean over heads of (PC - lambda1 H + clamp), one image and one head at a
    time."""
    c = method.config
    images = torch.cat([*views])
    features = torch.empty(2 * B, method.backbone.n_features, dtype=torch.float64)
    for part in passes(c):
        features = features.index_put((torch.tensor(part),), method.backbone(images[part]))

    def mlp(bank, head, x):
        first, _, second = bank
        for layer in (first, second):
            n_out = layer.weight.shape[-1]
            bias = None if layer.bias is None else layer.bias[head * n_out : (head + 1) * n_out]
            x = F.linear(x, layer.weight[head].T, bias)
            x = x.clamp_min(0) if layer is first else x
        return x

    if c.projector_batchnorm:
        first, norm, _, last = method.projector
        hidden = features @ first.weight.T
        hidden = (hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + norm.eps).sqrt()
        z = F.linear((hidden * norm.weight + norm.bias).clamp_min(0), last.weight, last.bias)
    else:
        z = mlp(method.projector, 0, features)
    if c.negatives == "pair":
        fc = loop_feature_contrast(z[:B], z[B:], c.temperature)
    else:
        both = torch.stack([z[:B], z[B:]])
        fc = loop_views_contrast(both, c.temperature, c.negatives == "decoupled")
    beside = {"covariance": loop_covariance(z)} if c.covariance_weight else {}
    fc_in_loss = fc + sum(c.covariance_weight * term for term in beside.values())
    if c.neighbour_weight:
        how = c.negatives == "decoupled", c.negatives == "pair", method.queue
        near = loop_views_contrast(torch.stack([z[:B], z[B:]]), c.temperature, *how)
        beside["neighbour_contrast"] = near if method.warm else torch.zeros_like(near)
        fc_in_loss = fc_in_loss + method.warm * c.neighbour_weight * (near - fc)
    pcs, entropies, heads = [], [], []
    for head in range(c.n_heads):
        logits = mlp(method.heads, head, features)
        p = torch.stack([row.exp() / row.exp().sum() for row in logits])
        smoothed = (1 - c.smoothing) * p + c.smoothing / K
        pc = loop_info_nce([*smoothed], LOOP_CRITICS[c.critic])
        q = smoothed if c.entropy_smoothed else p
        entropy = 0
        for view in (q[:B], q[B:]):
            if c.entropy == "batch":
                entropy = entropy + loop_entropy(sum(view) / B) / 2
            else:
                entropy = entropy + sum(loop_entropy(row) for row in view) / B / 2
        clamp = 0
        for l in logits.flatten() if c.logit_clamp else []:
            clamp = clamp + (l.abs() - c.logit_clamp).clamp_min(0).item() * l.abs() / (2 * B)
        pcs.append(pc)
        entropies.append(entropy)
        heads.append(pc - c.lambda1 * entropy + c.logit_clamp_weight * clamp)
    mean = lambda terms: sum(terms) / len(terms)  # noqa: E731
    return beside | {
        "loss": c.lambda2 * fc_in_loss + mean(heads),
        "feature_contrast": fc,
        "probability_contrast": mean(pcs),
        "entropy": mean(entropies),
        "head_losses": torch.stack(heads),
    }


CLAMPED = dict(logit_clamp=0.5, logit_clamp_weight=0.3)
NEIGHBOURS = dict(neighbour_weight=0.4, neighbour_queue=3 * B, neighbour_from=0)
CHANGES = [  # the settings, and the settings from which they must differ
    (dict(), None),
    (dict(lambda1=0.3), {}),
    (dict(lambda1=0), {}),
    (dict(lambda2=2.5), {}),
    (dict(lambda2=0), {}),
    (dict(temperature=0.5), {}),
    (dict(entropy="sample"), {}),
    (dict(entropy_smoothed=True, smoothing=0.2), dict(smoothing=0.2)),
    (
        dict(entropy="sample", entropy_smoothed=True, smoothing=0.2),
        dict(entropy="sample", smoothing=0.2),
    ),
    (dict(smoothing=0.2), {}),
    (dict(smoothing=0), dict(smoothing=0.2)),
    (dict(critic="dot"), {}),
    (dict(critic="neg_l2"), {}),
    (dict(critic="neg_js"), {}),
    (CLAMPED, {}),
    (dict(CLAMPED, logit_clamp=1.0), CLAMPED),
    (dict(CLAMPED, logit_clamp_weight=0.1), CLAMPED),
    (dict(CLAMPED, logit_clamp=0), CLAMPED),
    (dict(n_heads=1), {}),
    (dict(n_heads=5), {}),
    (dict(head_bias=False, head_init="torch"), dict(head_init="torch")),
    (dict(head_init="torch"), {}),
    (dict(negatives="decoupled"), {}),
    (dict(covariance_weight=0.3), {}),
    (NEIGHBOURS, {}),
    (dict(NEIGHBOURS, neighbour_weight=1), NEIGHBOURS),
    (dict(NEIGHBOURS, neighbour_from=0.5), NEIGHBOURS),
    (dict(NEIGHBOURS, negatives="all", covariance_weight=0.3), dict(negatives="all")),
    (dict(NEIGHBOURS, negatives="decoupled"), NEIGHBOURS),
    (dict(projector_batchnorm=True), {}),
    (dict(views="apart"), {}),
    (dict(batchnorm_split=2), {}),
    (dict(batchnorm_split=2), dict(views="apart")),
    (dict(batchnorm_split=3), dict(batchnorm_split=2)),
    (dict(views="apart", batchnorm_split=2), dict(views="apart")),
    (dict(views="apart", batchnorm_split=2), dict(batchnorm_split=2)),
]


@pytest.mark.parametrize("settings, other", CHANGES)
def test_loss_is_that_of_the_formulas(settings, other):
    method, views = made(**settings)
    ours, theirs = loss_of(method, views), from_the_formulas(method, views)
    assert list(ours) == [
        "loss",
        "feature_contrast",
        "probability_contrast",
        "entropy",
        "head_losses",
        *["covariance"] * ("covariance_weight" in settings),
        *["neighbour_contrast"] * ("neighbour_weight" in settings),
    ]
    assert ours["head_losses"].shape == (method.config.n_heads,)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-10, msg=name)
    if other is not None:  # the setting does something
        assert abs((ours["loss"] - loss_of(*made(**other))["loss"]).item()) > 1e-4
    named = dict(method.named_parameters())
    for a, b in zip(
        torch.autograd.grad(ours["loss"], list(named.values()), allow_unused=True),
        torch.autograd.grad(theirs["loss"], list(named.values()), allow_unused=True),
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_the_entropy_is_maximised():
    """A larger lambda1 is a smaller loss, by the entropy, which no coefficient scales in the
    history."""
    one, two = (loss_of(*made(lambda1=x)) for x in (1, 2))
    torch.testing.assert_close(one["loss"] - two["loss"], one["entropy"])
    torch.testing.assert_close(one["entropy"], two["entropy"])
    assert 0 < one["entropy"] < math.log(K)
    torch.testing.assert_close(
        one["loss"], 10 * one["feature_contrast"] + one["head_losses"].mean()
    )


def test_loss_in_float32():
    method, views = made()
    exact = loss_of(method, views)
    single = loss_of(method.float(), views.float())
    for name in exact:
        assert single[name].dtype == torch.float32
        torch.testing.assert_close(single[name].double(), exact[name], rtol=0, atol=2e-5)


def test_loss_under_autocast():
    """The network in bfloat16, the loss in float32: close, finite, and with a gradient for all."""
    method, views = made()
    method, views = method.float(), views.float()
    exact = loss_of(method, views)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = loss_of(method, views)
        assert method.outputs(views[0])["probabilities"].dtype == torch.float32
    for name in exact:
        assert narrow[name].dtype == torch.float32
        torch.testing.assert_close(narrow[name], exact[name], rtol=0.05, atol=0.05)
    narrow["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


def test_every_part_learns_from_its_own_terms():
    def touched(**settings):
        method, views = made(**settings)
        loss_of(method, views)["loss"].backward()
        part = lambda m: any(p.grad is not None and p.grad.abs().sum() > 0 for p in m.parameters())  # noqa: E731
        return part(method.backbone), part(method.projector), part(method.heads)

    assert touched() == (True, True, True)
    assert touched(lambda2=0) == (True, False, True)
    method, views = made()
    loss_of(method, views)["feature_contrast"].backward()
    assert all(p.grad is None for p in method.heads.parameters())


def test_a_method_never_sees_a_label():
    for method in METHODS.values():
        assert list(inspect.signature(method.loss).parameters) == [
            "self",
            "views",
            "index",
        ]
        for name in (
            "__init__",
            "loss",
            "outputs",
            "prepare",
            "order",
            "encode",
            "after_step",
            "before_epoch",
        ):
            words = set(inspect.signature(getattr(method, name)).parameters)
            assert not words & {"label", "labels", "target", "targets", "y", "classes"}


@pytest.mark.parametrize(
    "settings", [{}, {"entropy": "sample"}, {"views": "apart"}, CLAMPED, NEIGHBOURS]
)
def test_more_views_are_averaged_over_their_pairs(settings):
    """Three views' loss is the mean over the three pairs, with the features of one common pass."""
    method, _ = made(n_views=3, **settings)
    views = torch.rand(3, B, 1, 8, 8, dtype=torch.float64)
    found, features = loss_of(method, views), method.encode([*views]).detach()
    pairs, method.config = [], method.config.replace(n_views=2)
    for pair in ([0, 1], [0, 2], [1, 2]):
        method.encode = lambda _, pair=pair: features.unflatten(0, (3, B))[pair].flatten(0, 1)
        pairs.append(loss_of(method, views[pair]))
    for name, value in found.items():
        torch.testing.assert_close(value, sum(p[name] for p in pairs) / 3)


def test_the_order_of_images_and_of_views_does_not_matter():
    method, views = made()
    loss = loss_of(method, views)["loss"]
    torch.testing.assert_close(loss_of(method, views.flip(0))["loss"], loss)
    torch.testing.assert_close(loss_of(method, views[:, torch.randperm(B)])["loss"], loss)
    torch.testing.assert_close(
        method.loss([*views], torch.randperm(B) + 50)["loss"], loss
    )  # which images: not asked


# ---- neighbours as positives


def test_the_queue_has_the_first_views_of_the_last_steps():
    """From the first step on, though no neighbour is in the loss yet; as long rows of length
    one."""
    method, _ = made(**{**NEIGHBOURS, "neighbour_from": 1})
    kept = [*method.queue.clone()]
    assert len(kept) == 3 * B and all(abs(float(row.norm()) - 1) < 1e-6 for row in kept)
    for step in range(5):
        views = torch.rand(2, B, 1, 8, 8, dtype=torch.float64)
        loss_of(method, views)
        first = method.projections(method.encode([*views]))[:B].detach()
        method.after_step(step, 5)
        kept = [*(row / row.norm() for row in first), *kept][: 3 * B]
        torch.testing.assert_close(method.queue, torch.stack(kept))
    assert not method.queue.requires_grad and "queue" in method.state_dict()


def test_neighbours_change_no_weight_at_the_start():
    """And without them there is no queue, so that runs from before can be read."""
    without, with_them = made()[0].state_dict(), made(**NEIGHBOURS)[0].state_dict()
    assert {*with_them} - {*without} == {"queue"}
    assert all(torch.equal(without[name], with_them[name]) for name in without)


@pytest.mark.parametrize(
    "epochs, share, first", [(12, 0.33, 5), (4, 0.33, 2), (30, 0.1, 4), (3, 0, 1), (2, 1, None)]
)
def test_neighbours_enter_after_a_share_of_the_epochs(epochs, share, first):
    method, _ = made(**{**NEIGHBOURS, "neighbour_from": share, "epochs": epochs})
    warm = []
    for epoch in range(1, epochs + 1):
        method.before_epoch(epoch, None)
        warm += [epoch] * method.warm
    assert warm == [*range(first or epochs + 1, epochs + 1)]
    said = [note for note in method.config.sentences("notes") if "neighbour_from" in note]
    never = f"neighbour_from is {method.config.neighbour_from} and epochs {epochs}"
    assert said == ([] if first else [f"{never}: no neighbour ever enters the loss"])


def test_a_queue_that_holds_each_image_is_refused(tmp_path):
    queue = {"neighbour_weight": 0.5, "limit": 200, "results_dir": str(tmp_path)}
    config = Config.from_params({**queue, "neighbour_queue": 256, "data_dir": str(tmp_path)})
    with pytest.raises(ConfigError, match="neighbour_queue is 256, more than the 200 images"):
        list(fit(config))


# ---- the passes through the network


def batch_norms(method):
    return [m for m in method.modules() if isinstance(m, nn.BatchNorm2d)]


def test_views_apart_have_batch_norms_of_their_own():
    """As two forwards, one a view: in the features, and in the running statistics they leave."""
    apart, views = made(views="apart")
    views[1] = 3 * views[1] + 1  # so that shared statistics would differ
    by_hand, _ = made(views="apart")
    together, _ = made()
    features = apart.encode([*views])
    expected = torch.cat([by_hand.backbone(views[0]), by_hand.backbone(views[1])])
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-12)
    for a, b in zip(batch_norms(apart), batch_norms(by_hand)):
        torch.testing.assert_close(a.running_mean, b.running_mean)
        torch.testing.assert_close(a.running_var, b.running_var)
        assert a.num_batches_tracked == 2
    assert (together.encode([*views]) - features).abs().max() > 0.01
    assert batch_norms(together)[0].num_batches_tracked == 1


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("views_setting", ["apart", "together"])
def test_batchnorm_split_is_as_on_n_devices(views_setting, n):
    """Each device has 1/n of the images, in both views; a device's other images do not reach its
    features."""
    method, views = made(views=views_setting, batchnorm_split=n)
    features = method.encode([*views]).view(2, B, -1)
    share = B // n
    for device in range(n):
        mine = slice(device * share, (device + 1) * share)
        if views_setting == "apart":
            expected = torch.stack([method.backbone(view[mine]) for view in views])
        else:
            expected = method.backbone(torch.cat([views[0, mine], views[1, mine]])).view(
                2, share, -1
            )
        torch.testing.assert_close(features[:, mine], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "settings",
    [dict(views="apart"), dict(batchnorm_split=3), dict(views="apart", batchnorm_split=2)],
)
def test_passes_keep_the_order_of_images(settings):
    """In evaluation mode the passes cannot matter, so neither may the way they are put together."""
    method, views = made(**settings)
    method.eval()
    images = torch.cat([*views])
    torch.testing.assert_close(
        method.encode(images.chunk(2)), method.backbone(images), rtol=0, atol=1e-12
    )


# ---- the heads


@pytest.mark.parametrize("bias", [True, False])
def test_heads_linear_is_separate_linear_layers(bias):
    bank = HeadsLinear(3, 5, 4, bias, "torch")
    layers = [nn.Linear(5, 4, bias) for _ in range(3)]
    for h, layer in enumerate(layers):
        layer.weight.data = bank.weight.data[h].T.clone()
        if bias:
            layer.bias.data = bank.bias.data.view(3, 4)[h].clone()
    shared, own = torch.randn(7, 5), torch.randn(3, 7, 5)
    torch.testing.assert_close(bank(shared), torch.stack([layer(shared) for layer in layers]))
    out, expected = bank(own), torch.stack([layer(x) for layer, x in zip(layers, own)])
    torch.testing.assert_close(out, expected)
    out.square().sum().backward()
    expected.square().sum().backward()
    for h, layer in enumerate(layers):
        torch.testing.assert_close(bank.weight.grad[h].T, layer.weight.grad)
        if bias:
            torch.testing.assert_close(bank.bias.grad.view(3, 4)[h], layer.bias.grad)
    assert (bank.bias is not None) == bias


def test_initial_ranges():
    """kaiming: uniform of gain sqrt(2) over the inputs, zero bias; torch: as nn.Linear draws
    both."""
    kaiming, torchs = HeadsLinear(4, 50, 60, True, "kaiming"), HeadsLinear(4, 50, 60, True, "torch")
    theirs = nn.Linear(50, 12_000)
    assert kaiming.bias.count_nonzero() == 0
    for ours, bound in [
        (kaiming.weight, math.sqrt(6 / 50)),
        (torchs.weight, 1 / math.sqrt(50)),
        (torchs.bias, 1 / math.sqrt(50)),
    ]:
        assert 0.97 * bound < ours.abs().max().item() <= bound
        assert ours.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert theirs.weight.std().item() == pytest.approx(torchs.weight.std().item(), rel=0.02)
    assert theirs.bias.std().item() == pytest.approx(torchs.bias.std().item(), rel=0.1)
    reference = torch.empty(60, 50)
    nn.init.kaiming_uniform_(reference, nonlinearity="relu")
    assert reference.std().item() == pytest.approx(kaiming.weight.std().item(), rel=0.05)
    assert not torch.equal(kaiming.weight[0], kaiming.weight[1])  # each head starts from its own


def test_heads_mlp():
    bank = heads_mlp(3, 5, 8, 4)
    x = torch.randn(6, 5)
    out = bank(x)
    assert out.shape == (3, 6, 4)
    for h in range(3):
        hidden = (x @ bank[0].weight[h]).relu()
        torch.testing.assert_close(out[h], hidden @ bank[2].weight[h])  # biases start at 0


@pytest.mark.parametrize(
    "settings", [dict(), dict(head_bias=False), dict(head_init="torch"), dict(n_heads=1)]
)
def test_settings_reach_the_heads(settings):
    method, _ = made(**settings)
    c = method.config
    for bank, n_heads, n_out in (
        (method.projector, 1, c.projection_dim),
        (method.heads, c.n_heads, K),
    ):
        assert bank[0].weight.shape == (n_heads, method.backbone.n_features, c.head_hidden)
        assert bank[2].weight.shape == (n_heads, c.head_hidden, n_out)
        for layer in (bank[0], bank[2]):
            assert (layer.bias is not None) == c.head_bias
            if c.head_bias:
                assert (layer.bias.abs().sum() > 0) == (c.head_init == "torch")


def test_weight_decay_can_tell_a_bias_from_a_weight():
    """Weights have two dimensions or more, biases and batch norm one, as everywhere in torch."""
    method, _ = made()
    one = {name for name, p in method.named_parameters() if p.dim() == 1}
    norms = {
        f"{name}.{k}"
        for name, m in method.named_modules()
        if isinstance(m, nn.BatchNorm2d)
        for k in ("weight", "bias")
    }
    assert one == norms | {name for name, _ in method.named_parameters() if name.endswith("bias")}
    assert {"heads.0.bias", "heads.2.bias", "projector.2.bias"} <= one


# ---- what the others ask of a method


def test_outputs():
    method, views = made()
    method.eval()
    out = method.outputs(views[0])
    features, p = out["backbone"], out["probabilities"]
    assert (
        features.shape == (B, 6) and p.shape == (2, B, K) and method.prepare(features) is features
    )
    torch.testing.assert_close(out["projection"], method.projector(features)[0])
    torch.testing.assert_close(p.sum(-1), torch.ones(2, B, dtype=torch.float64))
    torch.testing.assert_close(p, method.heads(features).softmax(-1))
    assert (
        method.after_step(0, 1) is None
        and method.before_epoch(1, None) == {}
        and method.order(3, None) is None
    )
